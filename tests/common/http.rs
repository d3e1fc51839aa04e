//! A store served over HTTP inside the test, behind its guard.

use std::net::SocketAddr;
use std::path::PathBuf;

use axum::Router;
use can_sync::core::ids::HashAlgorithm;
use can_sync::http::guard::Guard;
use can_sync::http::serve::serve;
use can_sync::http::store_api::{self, Features};
use can_sync::store::embedded::{EmbeddedStore, Options};
use can_sync::store::http::{HttpStore, Stated};
use can_sync::store::key::StoreKey;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A running server; it ends when dropped.
pub struct Served {
    pub address: SocketAddr,
    pub key: StoreKey,
    pub key_file: PathBuf,
    pub dir: TempDir,
    pub stop: CancellationToken,
    pub ended: JoinHandle<std::io::Result<()>>,
    _stop_on_drop: DropGuard,
}

impl Served {
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn client(&self) -> HttpStore {
        HttpStore::new(&self.url(), &self.key_file).unwrap()
    }

    /// A client of a store whose hash algorithm the configuration states.
    pub fn client_with(&self, hash_algorithm: HashAlgorithm) -> HttpStore {
        let stated = Stated { hash_algorithm: Some(hash_algorithm), key_header: None };
        HttpStore::with_stated(&self.url(), &self.key_file, stated).unwrap()
    }

    /// A request to the store with the key in its header.
    pub fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        client().request(method, format!("{}{path}", self.url())).bearer_auth(self.key.expose())
    }
}

/// A plain HTTP client. Installs the crypto provider unless [`HttpStore`] has done so.
pub fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// Serves a router behind a guard with a new key.
pub async fn guarded(dir: TempDir, router: Router) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let key_file = dir.path().join("key");
    let key = StoreKey::create(&key_file).unwrap();
    let router = Guard::new(key.clone(), address.port()).layer(router);
    let stop = CancellationToken::new();
    let ended = tokio::spawn(serve(listener, router, stop.clone()));
    Served {
        address,
        key,
        key_file,
        dir,
        stop: stop.clone(),
        ended,
        _stop_on_drop: stop.drop_guard(),
    }
}

/// A new embedded store in a folder of its own.
pub fn embedded(hash_algorithm: HashAlgorithm) -> (TempDir, EmbeddedStore) {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { hash_algorithm, free_floor_bytes: Some(0) };
    let store = EmbeddedStore::open(&dir.path().join("store"), options).unwrap();
    (dir, store)
}

/// A new embedded store, served.
pub async fn served(hash_algorithm: HashAlgorithm, features: Features) -> (Served, EmbeddedStore) {
    let (dir, store) = embedded(hash_algorithm);
    let served = guarded(dir, store_api::router(store.clone(), features)).await;
    (served, store)
}
