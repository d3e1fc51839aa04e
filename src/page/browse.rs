//! The view of assets: those that match a search, as a grid or a list, a page at a time; and a place to
//! drop files.
//!
//! A page of results links to the next by cursor, so the last page costs no more than the first. The
//! script fetches pages as the user scrolls, and empties those that are far away.

use axum::Router;
use axum::extract::Query;
use axum::http::StatusCode;
use axum::routing::get;
use maud::{Markup, html};
use serde::Deserialize;

use super::form::token;
use super::icons;
use super::layout::{PageError, View, empty};
use super::names::Names;
use super::visit::{Page, Visit};
use super::words::{kind, name, size, time};
use crate::core::ids::NodeId;
use crate::http::asset::{AssetRow, AssetsPage};
use crate::http::problem::{Problem, bad_request};
use crate::http::target::path_and_query;
use crate::thumbnails::TYPES;

/// The assets on a page. They fill a few screens of a phone, or one wide screen.
const PAGE_ASSETS: &str = "60";

/// The kinds to choose from, and the media types that they stand for.
const KINDS: [(&str, &str); 6] = [
    ("", "All kinds"),
    ("image/", "Pictures"),
    ("video/", "Videos"),
    ("audio/", "Sound"),
    ("text/", "Texts"),
    ("application/pdf", "PDFs"),
];

/// The routes.
pub(super) fn router() -> Router<Page> {
    Router::new().route("/browse", get(show))
}

/// The search, as the query of the URL.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Search {
    /// A text in the name or the description.
    q: String,
    tag: String,
    /// A media type, or the start of one.
    kind: String,
    /// The device that added it.
    device: String,
    /// Stored here on this day or later: `2026-01-31`.
    since: String,
    /// Stored here on this day or before.
    until: String,
    /// `trash`, or nothing.
    r#in: String,
    /// `list`, or nothing for a grid.
    view: String,
    /// Where the page starts.
    after: String,
}

impl Search {
    fn is_narrow(&self) -> bool {
        let Self { q, tag, kind, device, since, until, .. } = self;
        [q, tag, kind, device, since, until].iter().any(|part| !part.is_empty())
    }

    /// The search without conditions, in the same layout.
    fn wide(&self) -> Self {
        Self { r#in: self.r#in.clone(), view: self.view.clone(), ..Self::default() }
    }

    fn is_trash(&self) -> bool {
        self.r#in == "trash"
    }

    fn is_list(&self) -> bool {
        self.view == "list"
    }

    /// The URL of this search.
    fn url(&self) -> String {
        let Self { q, tag, kind, device, since, until, r#in, view, after } = self;
        let all = [
            ("q", q),
            ("tag", tag),
            ("kind", kind),
            ("device", device),
            ("since", since),
            ("until", until),
            ("in", r#in),
            ("view", view),
            ("after", after),
        ];
        let given: Vec<(&str, &str)> = all
            .iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(n, v)| (*n, v.as_str()))
            .collect();
        path_and_query(&["browse"], &given)
    }

    /// The query of the request to the API.
    fn asked(&self) -> Result<Vec<(&'static str, String)>, Problem> {
        let mut asked = vec![("limit", PAGE_ASSETS.to_owned())];
        asked.push(("trashed", self.is_trash().to_string()));
        let texts =
            [("q", &self.q), ("tag", &self.tag), ("type", &self.kind), ("after", &self.after)];
        let given = texts.into_iter().filter(|(_, value)| !value.is_empty());
        asked.extend(given.map(|(name, value)| (name, value.clone())));
        if !self.device.is_empty() {
            asked.push(("device", self.device.clone()));
        }
        if !self.since.is_empty() {
            asked.push(("since_ms", day_ms(&self.since)?.to_string()));
        }
        if !self.until.is_empty() {
            asked.push(("until_ms", (day_ms(&self.until)? + DAY_MS).to_string()));
        }
        Ok(asked)
    }
}

const DAY_MS: i64 = 24 * 3600 * 1000;

/// The start of a day in UTC, ms since the Unix epoch.
fn day_ms(text: &str) -> Result<i64, Problem> {
    let day = chrono::NaiveDate::parse_from_str(text, "%Y-%m-%d");
    let day =
        day.map_err(|_| bad_request(format!("expected a day such as 2026-01-31, got {text:?}")))?;
    Ok(day.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_millis())
}

async fn show(visit: Visit, Query(search): Query<Search>) -> Result<Markup, PageError> {
    let asked = search.asked()?;
    let asked: Vec<(&str, &str)> =
        asked.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let page = assets(&visit, &asked).await?;
    let content = html! {
        (filters(&visit, &search))
        @if !search.is_trash() { (add(&visit)) }
        (results(&search, &page))
    };
    Ok(visit.show(View::Browse, if search.is_trash() { "Trash" } else { "Browse" }, content))
}

/// The newest assets first, if the store supports that order.
async fn assets(visit: &Visit, asked: &[(&str, &str)]) -> Result<AssetsPage, Problem> {
    let newest = [asked, &[("order", "newest")]].concat();
    match visit.page.agent.get(&["v1", "assets"], &newest).await {
        Err(problem) if problem.status == StatusCode::NOT_IMPLEMENTED => {
            visit.page.agent.get(&["v1", "assets"], asked).await
        }
        page => page,
    }
}

fn filters(visit: &Visit, search: &Search) -> Markup {
    let other = |change: fn(&mut Search)| {
        let mut other = Search { after: String::new(), ..search.clone() };
        change(&mut other);
        other.url()
    };
    let status = &visit.status;
    let names = Names::of(status);
    let devices = std::iter::once(status.device.node_id)
        .chain(status.peers.iter().map(|peer| peer.node_id))
        .map(|node_id| (node_id, names.get(&node_id)));
    let more = search.device.len() + search.since.len() + search.until.len() + search.tag.len() > 0;
    html! {
        form.filters role="search" action="/browse" {
            @if search.is_trash() { input type="hidden" name="in" value="trash"; }
            @if search.is_list() { input type="hidden" name="view" value="list"; }
            div.line {
                label.hidden for="q" { "Name or description" }
                input #q type="search" name="q" value=(search.q) placeholder="Name or description" autocomplete="off" enterkeyhint="search";
                label.hidden for="kind" { "Kind" }
                select #kind name="kind" {
                    @for (value, text) in KINDS { option value=(value) selected[value == search.kind] { (text) } }
                }
                button { "Search" }
            }
            div.tools {
                details.extra open[more] {
                    summary { "More filters" }
                    div.line {
                        div.field { label for="tag" { "Tag" } input #tag name="tag" value=(search.tag) autocomplete="off"; }
                        div.field { label for="device" { "Added on" }
                            select #device name="device" {
                                option value="" { "Any device" }
                                @for (node_id, text) in devices { (device_option(node_id, &text, search)) }
                            }
                        }
                        div.field { label for="since" { "Stored from" } input #since type="date" name="since" value=(search.since); }
                        div.field { label for="until" { "to" } input #until type="date" name="until" value=(search.until); }
                    }
                }
                div.ways {
                    @if search.is_narrow() { a href=(other(|s| *s = s.wide())) { "Clear the search" } }
                    @if search.is_list() { a href=(other(|s| s.view.clear())) { "As a grid" } }
                    @else { a href=(other(|s| s.view = "list".into())) { "As a list" } }
                    @if search.is_trash() { a href=(other(|s| s.r#in.clear())) { "Out of the trash" } }
                    @else { a href=(other(|s| s.r#in = "trash".into())) { "Trash" } }
                }
            }
        }
    }
}

fn device_option(node_id: NodeId, text: &str, search: &Search) -> Markup {
    let value = node_id.to_string();
    html! { option value=(value) selected[value == search.device] { (text) } }
}

/// The area to drop files on. It needs the script.
fn add(visit: &Visit) -> Markup {
    html! {
        form.drop #drop method="post" enctype="multipart/form-data" hidden {
            (token(&visit.session))
            label.button.plain for="files" { "Add files" }
            input.hidden #files type="file" multiple;
            span.quiet { "or drop them anywhere on this page" }
        }
        ul.uploads #uploads aria-live="polite" {}
    }
}

fn results(search: &Search, page: &AssetsPage) -> Markup {
    let is_first = search.after.is_empty();
    if page.assets.is_empty() && page.next.is_none() && is_first {
        return match (search.is_narrow(), search.is_trash()) {
            (true, _) => empty("Nothing fits", html! { "Try fewer words, or clear a filter." }),
            (false, true) => empty(
                "The trash is empty",
                html! { "What you put into the trash waits here, and can be restored." },
            ),
            (false, false) => empty(
                "Nothing here yet",
                html! {
                    "Drop files on this page, run " code { "can-sync add" } ", or pair a device that has some."
                },
            ),
        };
    }
    let next = page.next.map(|next| Search { after: next.to_string(), ..search.clone() }.url());
    html! {
        div.assets data-page=(search.url()) {
            @if search.is_list() { (list(&page.assets)) } @else { (grid(&page.assets)) }
        }
        @if let Some(next) = next { a.more.button.plain rel="next" href=(next) { "More" } }
        @else if !page.assets.is_empty() { p.end.quiet { "That is all." } }
    }
}

fn grid(assets: &[AssetRow]) -> Markup {
    html! {
        ul.grid {
            @for asset in assets {
                li { a.tile href=(format!("/asset/{}", asset.hash)) {
                    span.picture { (picture(asset)) }
                    span.caption { (name(title(asset))) }
                } }
            }
        }
    }
}

fn list(assets: &[AssetRow]) -> Markup {
    html! {
        div.scroll role="group" aria-label="Assets" tabindex="0" { table.list {
            thead { tr { th scope="col" { "Name" } th scope="col" { "Kind" } th.number scope="col" { "Size" } th scope="col" { "Stored" } th scope="col" { "Tags" } } }
            tbody { @for asset in assets { tr {
                td { a href=(format!("/asset/{}", asset.hash)) { (name(title(asset))) } }
                td { (kind(&asset.media_type)) }
                td.number { (size(asset.size)) }
                td { (time(asset.timestamp)) }
                td { (tags(asset)) }
            } } }
        } }
    }
}

/// The tags of an asset, each as a link to the assets that have it.
pub(super) fn tags(asset: &AssetRow) -> Markup {
    html! {
        span.tags { @for tag in &asset.tags {
            a.tag href=(path_and_query(&["browse"], &[("tag", tag)])) { (name(tag)) }
        } }
    }
}

/// A picture of an asset, or a drawing for its kind.
pub(super) fn picture(asset: &AssetRow) -> Markup {
    let essence = asset.media_type.split(';').next().unwrap_or_default().trim();
    html! {
        @if asset.damaged { span.flag { "Damaged" } }
        @else if asset.evicted { span.flag { "Not on this device" } }
        @if TYPES.contains(&essence) {
            img src=(format!("/thumbnail/{}", asset.hash)) alt="" loading="lazy" decoding="async" width="320" height="320";
        } @else { (icons::of_type(&asset.media_type)) }
    }
}

/// The name to show for an asset.
pub(super) fn title(asset: &AssetRow) -> &str {
    if asset.name.is_empty() { "Without a name" } else { &asset.name }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_search_is_its_url_and_dates_are_days() {
        let search = Search {
            q: "a&b=\"<ü>".into(),
            since: "2026-01-31".into(),
            until: "2026-01-31".into(),
            ..Search::default()
        };
        let expected =
            "/browse?q=a%26b%3D%22%3C%C3%BC%3E&since=2026%2D01%2D31&until=2026%2D01%2D31";
        assert_eq!(search.url(), expected);
        let asked = search.asked().unwrap();
        assert!(asked.contains(&("since_ms", "1769817600000".into())), "{asked:?}");
        assert!(asked.contains(&("until_ms", "1769904000000".into())), "{asked:?}");
        assert!(Search { since: "yesterday".into(), ..search }.asked().is_err());
        assert!(!Search::default().is_narrow());
    }
}
