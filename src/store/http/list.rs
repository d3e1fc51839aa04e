//! Searching a foreign store by its people's endpoint, `GET /assets`.

use reqwest::{Method, StatusCode};
use serde::Deserialize;

use super::connection::Request;
use super::{Inner, contract};
use crate::core::attributes::{Attribute, Attributes};
use crate::core::ids::{Digest, Hash};
use crate::core::names::NamePattern;
use crate::store::{
    Asset, Cursor, Entry, Filter, Metadata, PAGE_ENTRIES_MAX, StoreError, messages,
};

/// The rows of one `/assets` page, and the most bytes of a page.
const ROWS_PAGE: usize = 500;
const ROWS_BYTES_MAX: u64 = 64 * 1024 * 1024;

impl Inner {
    /// Implements [`Store::list`](crate::store::Store::list).
    pub(super) async fn list(
        &self,
        filter: &Filter,
        after: Cursor,
        limit: usize,
    ) -> Result<Vec<Asset>, StoreError> {
        if !self.profile().await?.offers("assets") {
            return Err(StoreError::Unsupported(
                "it does not offer \"assets\", so it cannot be searched".into(),
            ));
        }
        if filter.newest_first {
            return Err(StoreError::Unsupported("it lists the oldest assets first".into()));
        }
        let is_hex = |text: &String| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let prefix = filter.hash_prefix.as_ref();
        if prefix.is_some_and(|prefix| !is_hex(prefix) || prefix.len() > 2 * Hash::LEN) {
            // No hash can start like this, and the store would refuse the query.
            return Ok(Vec::new());
        }
        let limit = limit.min(PAGE_ENTRIES_MAX);
        let query = filter_query(filter, self.profile().await?.offers("attributes"));
        let mut assets: Vec<Asset> = Vec::new();
        let mut after = after;
        while assets.len() < limit {
            let room = (limit - assets.len()).min(ROWS_PAGE);
            let path = format!("/assets?after={after}&limit={room}{query}");
            let request = Request::new(Method::GET, path);
            let answer = self.connection.send(&request).await?;
            if answer.status() != StatusCode::OK {
                return Err(self.failure("GET /assets", answer).await);
            }
            let body = self.connection.body(answer, ROWS_BYTES_MAX).await?;
            let rows: Rows = serde_json::from_slice(&body)
                .map_err(|error| contract(format!("its rows cannot be read: {error}")))?;
            if rows.assets.len() > room {
                return Err(contract("it listed more rows than were asked for"));
            }
            for row in rows.assets {
                let mut asset = row_asset(row)?;
                asset.is_damaged |= self.is_damaged(&asset.entry.digest.hash);
                if asset.entry.cursor <= after {
                    return Err(contract("its rows are not in cursor order"));
                }
                after = asset.entry.cursor;
                if fits(filter, &asset) {
                    assets.push(asset);
                }
            }
            if rows.next.is_none_or(|next| next != after) {
                break;
            }
        }
        Ok(assets)
    }
}

/// Whether an asset meets all conditions of `filter`. A store of an earlier version does not know
/// some of them and returns assets that do not.
fn fits(filter: &Filter, asset: &Asset) -> bool {
    let (attributes, timestamp_ms) = (&asset.metadata.attributes, asset.entry.timestamp_ms);
    let fits = |name: &NamePattern| name.fits(attributes.path(), attributes.name());
    filter.name.as_ref().is_none_or(fits)
        && filter.since_ms.is_none_or(|since_ms| timestamp_ms >= since_ms)
        && filter.until_ms.is_none_or(|until_ms| timestamp_ms < until_ms)
}

/// A row of `GET /assets`.
#[derive(Debug, Deserialize)]
struct Row {
    hash: String,
    size: u64,
    timestamp: i64,
    cursor: Cursor,
    name: String,
    #[serde(rename = "type")]
    media_type: String,
    description: String,
    tags: Vec<String>,
    trashed: bool,
    version: u64,
    // Absent in the answers of some stores.
    #[serde(default)]
    damaged: bool,
    #[serde(default)]
    evicted: bool,
    #[serde(default)]
    path: String,
    #[serde(default)]
    modified_ms: Option<i64>,
    #[serde(default)]
    captured_ms: Option<i64>,
    #[serde(default)]
    application: String,
    #[serde(default)]
    user: String,
}

#[derive(Debug, Deserialize)]
struct Rows {
    assets: Vec<Row>,
    next: Option<Cursor>,
}

fn row_asset(row: Row) -> Result<Asset, StoreError> {
    let hash = row.hash.parse().map_err(|error| contract(format!("a row has no hash: {error}")))?;
    let metadata = messages::canonical(Metadata {
        description: row.description,
        tags: row.tags,
        trashed: row.trashed,
        version: row.version,
        attributes: Attributes::named(&row.name)
            .with_text(Attribute::MediaType, &row.media_type)
            .with_text(Attribute::Path, &row.path)
            .with_time(Attribute::ModifiedMs, row.modified_ms)
            .with_time(Attribute::CapturedMs, row.captured_ms)
            .with_text(Attribute::Application, &row.application)
            .with_text(Attribute::User, &row.user),
    })
    .map_err(contract)?;
    Ok(Asset {
        entry: Entry {
            digest: Digest { hash, size_bytes: row.size },
            timestamp_ms: row.timestamp,
            cursor: row.cursor,
        },
        metadata,
        is_damaged: row.damaged,
        is_evicted: row.evicted,
    })
}

/// The query of a filtered listing, without its paging. A store that keeps no attributes may refuse
/// the conditions for them.
fn filter_query(filter: &Filter, knows_attributes: bool) -> String {
    let mut query = String::new();
    let name = filter.name.as_ref().filter(|_| knows_attributes).map(NamePattern::to_glob);
    let [since_ms, until_ms] = [filter.since_ms, filter.until_ms]
        .map(|ms| ms.filter(|_| knows_attributes).map(|ms| ms.to_string()));
    let trashed = filter.trashed.map(|trashed| trashed.to_string());
    for (name, value) in [
        ("tag", &filter.tag),
        ("type", &filter.media_type),
        ("q", &filter.query),
        ("hash", &filter.hash_prefix),
        ("trashed", &trashed),
        ("name", &name),
        ("since_ms", &since_ms),
        ("until_ms", &until_ms),
    ] {
        let Some(value) = value.as_ref().filter(|value| !value.is_empty()) else {
            continue;
        };
        query.push_str(&format!("&{name}="));
        for byte in value.bytes() {
            match byte {
                b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' => {
                    query.push(char::from(byte));
                }
                _ => query.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    query
}
