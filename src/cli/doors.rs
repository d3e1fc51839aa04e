//! Where the network reaches an agent, if the user asks for it: the page and WebDAV, each with TLS and
//! behind its guard. The API itself is on loopback alone.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use axum::Router;
use futures_util::future::join_all;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::api::page::NetworkPage;
use crate::config::Settings;
use crate::http::browser::Door;
use crate::http::serve::serve_network;
use crate::http::tls::Certificate;
use crate::page::{self, Page};
use crate::state::home::{Home, Lock};

/// The listeners; none unless the configuration says so.
pub(super) struct Network {
    certificate: Option<Certificate>,
    listeners: Vec<Listening>,
}

struct Listening {
    listener: TcpListener,
    address: SocketAddr,
    has_page: bool,
    has_dav: bool,
}

impl Network {
    /// Listens where the settings say. One address may have both.
    pub(super) async fn bind(settings: &Settings, home: &Home, lock: &Lock) -> Result<Self> {
        let mut asked =
            vec![(settings.page_listen, true, settings.page_listen == settings.dav_listen)];
        if settings.page_listen != settings.dav_listen {
            asked.push((settings.dav_listen, false, true));
        }
        let mut network = Self { certificate: None, listeners: Vec::new() };
        for (address, has_page, has_dav) in asked {
            let Some(address) = address else { continue };
            let listener = TcpListener::bind(address).await;
            let listener = listener.with_context(|| format!("listening on {address}"))?;
            let address = listener.local_addr().context("looking up an address")?;
            network.listeners.push(Listening { listener, address, has_page, has_dav });
        }
        if !network.listeners.is_empty() {
            let bytes = home.tls(lock, Certificate::make)?;
            network.certificate = Some(Certificate::read(&bytes)?);
        }
        Ok(network)
    }

    /// Where the page is.
    pub(super) fn page(&self) -> Option<NetworkPage> {
        let (address, fingerprint) = self.find(|listening| listening.has_page)?;
        Some(NetworkPage { address, fingerprint })
    }

    /// Where WebDAV is, and the fingerprint there.
    pub(super) fn dav(&self) -> Option<(SocketAddr, String)> {
        self.find(|listening| listening.has_dav)
    }

    fn find(&self, is_it: impl Fn(&Listening) -> bool) -> Option<(SocketAddr, String)> {
        let found = self.listeners.iter().find(|listening| is_it(listening))?;
        Some((found.address, self.certificate.as_ref()?.fingerprint.clone()))
    }

    /// Serves the page and WebDAV, whose guards are in the routers, until `stop` is cancelled.
    pub(super) async fn serve(self, page: &Page, dav: &Router, stop: &CancellationToken) {
        let Some(Certificate { acceptor, .. }) = self.certificate else { return };
        let serving = self.listeners.into_iter().map(|listening| {
            let mut router = Router::new();
            if listening.has_page {
                let door = Door::Network(listening.address.port());
                router = router.merge(page::router(page.clone(), door));
            }
            if listening.has_dav {
                router = router.merge(dav.clone());
            }
            serve_network(listening.listener, acceptor.clone(), router, stop.clone())
        });
        join_all(serving).await;
    }
}
