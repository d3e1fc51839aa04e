//! The description of every route that an agent serves, as OpenAPI 3.1. It is generated
//! from the annotations of the routes and from their request and answer types; this file adds what
//! all routes have in common.

use std::sync::LazyLock;

use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};
use utoipa::{Modify, OpenApi};

use super::{
    Described, alerts, assets, checkup, config, copies, dav, events, folders, forgetting, hooks,
    ingest, journal, metrics, page, proofs, ready, records, verify, watch,
};
use crate::http::problem::{PROBLEM_TYPE, ProblemBody};
use crate::http::{people, store_api};

/// The meaning of each error status.
const ERRORS: [(&str, &str); 17] = [
    ("400", "The request is malformed; the detail says what was expected."),
    ("401", "The token is missing or wrong."),
    ("403", "The request breaks a rule, which the detail names."),
    ("404", "There is no such thing."),
    ("408", "The body did not come in time: try again."),
    ("409", "This device is in no group, or the state does not allow it."),
    (
        "410",
        "The cursor is of a time this device does not remember: read everything again. Of an \
             asset: its bytes are damaged here.",
    ),
    ("412", "It is not as the writer saw it."),
    ("413", "The body is larger than its limit, which the detail names."),
    ("415", "Another content type is expected."),
    ("416", "The range lies outside."),
    ("422", "The content does not have its hash."),
    ("500", "The agent failed."),
    ("501", "The store beside the agent cannot do this."),
    ("502", "The store beside the agent failed."),
    ("503", "Busy, stopping, or the store does not answer: try again."),
    ("507", "The disk is full, or this device's space in the journal."),
];

/// The statuses of every request.
const ERRORS_OF_ALL: [&str; 4] = ["401", "403", "500", "503"];

/// The error status that every request with parameters or a body may get.
const ERRORS_OF_INPUT: [&str; 1] = ["400"];

/// The error statuses that every request with a body may get.
const ERRORS_OF_BODY: [&str; 3] = ["408", "413", "415"];

/// The document, as JSON.
pub(super) fn document() -> &'static str {
    static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
        let document = Document::openapi();
        // The document holds texts and numbers only, so this cannot fail.
        serde_json::to_string(&document).unwrap_or_default()
    });
    &DOCUMENT
}

/// The parts that belong to no route.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "can-sync local API",
        version = "1",
        description = "What a running agent serves on loopback. A bearer token is needed for \
            everything but `/healthz` and `/readyz`: the content of `api-token` in the agent's home. \
            `api-address` there tells the URL. `Host` must name a literal loopback address, and \
            requests with `Origin` or `Referer` are refused. Bodies are read only under exactly the \
            content type given here. Errors are RFC 9457 problem documents.\n\nThe device that lets \
            another one in makes a ticket (`POST /v1/ticket`); the other redeems it (`POST \
            /v1/pair`). A member is removed with `DELETE /v1/peers/{device}`.\n\nThe routes under \
            `/sync` are served beside the embedded store only; `proto/store.proto` is their \
            specification.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    servers((
        url = "http://127.0.0.1:5757",
        description = "The first free port from 5757 on, unless `--listen` said otherwise."
    )),
    security(("token" = [])),
    tags(
        (name = "agent", description = "This device and the group."),
        (name = "records", description = "Small records that all devices of the group hold and \
            write. A field's later write stays; sets merge element by element; a delete wins. Each \
            write is durable here when it is answered, and reaches the others by itself."),
        (name = "own records", description = "Records that only their device writes and all can \
            read."),
        (name = "events", description = "Append-only streams. Agents write what happens on their devices \
            in the stream `device`."),
        (name = "folders", description = "Directories that are kept equal on all devices. A path is \
            written with `/` between its components, `\\\\` for a backslash and `\\xff` for a byte that \
            is no UTF-8 or does not show."),
        (name = "journal", description = "The journal as a whole."),
        (name = "assets", description = "The content store, for people and programs."),
        (name = "store", description = "The store API."),
    ),
    components(schemas(ProblemBody)),
    modifiers(&Common)
)]
struct Document;

/// Merges the descriptions of the modules, and adds the security scheme and the error statuses that
/// all operations share.
struct Common;

impl Modify for Common {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        for part in [
            Described::openapi(),
            assets::Described::openapi(),
            copies::Described::openapi(),
            checkup::Described::openapi(),
            records::described(),
            events::Described::openapi(),
            watch::Described::openapi(),
            journal::Described::openapi(),
            config::Described::openapi(),
            page::Described::openapi(),
            dav::Described::openapi(),
            proofs::Described::openapi(),
            forgetting::Described::openapi(),
            verify::Described::openapi(),
            folders::Described::openapi(),
            alerts::Described::openapi(),
            hooks::Described::openapi(),
            metrics::Described::openapi(),
            ready::Described::openapi(),
            ingest::Described::openapi(),
            people::Described::openapi(),
            store_api::Described::openapi(),
        ] {
            document.merge(part);
        }
        let components = document.components.get_or_insert_default();
        let token = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        components.add_security_scheme("token", token);
        let problem = Ref::from_schema_name("Problem");
        for (status, description) in ERRORS {
            let content = ContentBuilder::new().schema(Some(problem.clone())).build();
            let response = ResponseBuilder::new().description(description);
            let response = response.content(PROBLEM_TYPE, content).build();
            components.responses.insert(status.to_owned(), response.into());
        }
        for item in document.paths.paths.values_mut() {
            let PathItem { get, put, post, patch, delete, .. } = item;
            for operation in [get, put, post, patch, delete].into_iter().flatten() {
                add_errors(operation);
            }
        }
    }
}

/// Adds the common errors to each operation, with their meaning.
fn add_errors(operation: &mut Operation) {
    let responses = &mut operation.responses.responses;
    let has_body = operation.request_body.is_some();
    let has_input = has_body || operation.parameters.is_some();
    let of_input = ERRORS_OF_INPUT.iter().filter(|_| has_input);
    let of_body = ERRORS_OF_BODY.iter().filter(|_| has_body);
    for status in ERRORS_OF_ALL.iter().chain(of_input).chain(of_body) {
        responses.entry((*status).to_owned()).or_insert_with(|| error(status));
    }
    for (status, response) in responses {
        // An answer that describes its own body keeps it.
        let is_bare = matches!(response, RefOr::T(response) if response.content.is_empty());
        if is_bare && status.starts_with(['4', '5']) {
            *response = error(status);
        }
    }
}

fn error(status: &str) -> RefOr<utoipa::openapi::Response> {
    RefOr::Ref(Ref::from_response_name(status))
}
