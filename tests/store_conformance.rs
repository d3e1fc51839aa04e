//! Every implementation of `Store` fulfils the same contract: one suite, run for each.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use can_sync::core::ids::HashAlgorithm;
use can_sync::http::store_api::Features;
use can_sync::store::embedded::{EmbeddedStore, Options};
use common::{Fixture, conforms};

fn embedded(hash_algorithm: HashAlgorithm) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { hash_algorithm, free_floor_bytes: Some(0) };
    let store = EmbeddedStore::open(&dir.path().join("store"), options).unwrap();
    Fixture {
        scratch: store.staging_dir().to_owned(),
        dir: dir.path().join("store"),
        store: Arc::new(store),
        algorithm: hash_algorithm,
        outboards: hash_algorithm == HashAlgorithm::Blake3,
        large: true,
        lists: true,
        embedded: true,
        keep: Box::new(dir),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_store_keeps_the_contract() {
    conforms(async || embedded(HashAlgorithm::Blake3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_store_keeps_the_contract_with_sha256() {
    conforms(async || embedded(HashAlgorithm::Sha256)).await;
}

/// The HTTP client on a served embedded store.
async fn over_http(hash_algorithm: HashAlgorithm, features: Features) -> Fixture {
    let (served, store) = common::http::served(hash_algorithm, features).await;
    let scratch = served.dir.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    Fixture {
        store: Arc::new(served.client()),
        algorithm: hash_algorithm,
        outboards: false,
        large: true,
        lists: features.assets,
        embedded: false,
        scratch,
        dir: served.dir.path().join("store"),
        keep: Box::new((served, store)),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_over_http_keeps_the_contract() {
    conforms(async || over_http(HashAlgorithm::Blake3, Features::default()).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_over_http_keeps_the_contract_with_sha256() {
    conforms(async || over_http(HashAlgorithm::Sha256, Features::default()).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_over_http_without_features_keeps_the_contract() {
    let core = Features { blobs: false, batch: false, assets: false, ..Features::default() };
    conforms(async || over_http(HashAlgorithm::Blake3, core).await).await;
}
