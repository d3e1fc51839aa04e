//! Searching a foreign store by its people's endpoint, `GET /assets`.

use reqwest::{Method, StatusCode};
use serde::Deserialize;

use super::connection::Request;
use super::{Inner, contract};
use crate::core::ids::{Digest, Hash};
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
        let is_hex = |text: &String| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let prefix = filter.hash_prefix.as_ref();
        if prefix.is_some_and(|prefix| !is_hex(prefix) || prefix.len() > 2 * Hash::LEN) {
            // No hash can start like this, and the store would refuse the query.
            return Ok(Vec::new());
        }
        let limit = limit.min(PAGE_ENTRIES_MAX);
        let query = filter_query(filter);
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
                assets.push(asset);
            }
            if rows.next.is_none_or(|next| next != after) {
                break;
            }
        }
        Ok(assets)
    }
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
    /// Absent in the answers of some stores.
    #[serde(default)]
    damaged: bool,
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
        file_name: row.name,
        media_type: row.media_type,
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
    })
}

/// The query of a filtered listing, without its paging.
fn filter_query(filter: &Filter) -> String {
    let mut query = String::new();
    let trashed = filter.trashed.map(|trashed| trashed.to_string());
    for (name, value) in [
        ("tag", &filter.tag),
        ("type", &filter.media_type),
        ("q", &filter.query),
        ("hash", &filter.hash_prefix),
        ("trashed", &trashed),
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
