//! Which store an agent syncs, and how it is opened.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use tokio::task::spawn_blocking;

use super::Store;
use super::embedded::{EmbeddedStore, Options};
use super::http::{HttpStore, Stated};

/// The store that an agent syncs.
#[derive(Debug)]
pub enum StoreChoice {
    /// The built-in store.
    Embedded,
    /// The store of another program.
    Foreign {
        /// The store's base URL, on a loopback address.
        url: String,
        /// The file that holds its key.
        key_file: PathBuf,
        /// The properties that the configuration states for a store that does not report them.
        stated: Stated,
    },
}

/// A store that is ready for use.
pub struct OpenStore {
    /// The store.
    pub store: Arc<dyn Store>,
    /// `store` as the embedded store; `None` if another program serves the store.
    pub embedded: Option<EmbeddedStore>,
    /// Where it is, for people: its URL, or `embedded`.
    pub location: String,
    /// The folder in which uploads are written before the store adopts them.
    pub staging_dir: PathBuf,
}

impl StoreChoice {
    /// Opens the store. The embedded one lives in `store_dir`; uploads to one of another program are
    /// written in `scratch_dir` first. Does not wait for another program.
    ///
    /// # Errors
    /// The embedded store cannot be opened, or the URL or the key of the other one is unusable.
    pub async fn open(self, store_dir: PathBuf, scratch_dir: PathBuf) -> Result<OpenStore> {
        Ok(match self {
            Self::Embedded => {
                let opening =
                    spawn_blocking(move || EmbeddedStore::open(&store_dir, Options::default()));
                let embedded = opening.await??;
                OpenStore {
                    store: Arc::new(embedded.clone()),
                    staging_dir: embedded.staging_dir().to_owned(),
                    embedded: Some(embedded),
                    location: "embedded".to_owned(),
                }
            }
            Self::Foreign { url, key_file, stated } => OpenStore {
                store: Arc::new(HttpStore::with_stated(&url, &key_file, stated)?),
                embedded: None,
                location: url,
                staging_dir: scratch_dir,
            },
        })
    }
}
