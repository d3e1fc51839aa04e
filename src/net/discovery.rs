//! Finds devices in the local network by mDNS, and notices that the network changed.
//!
//! The mDNS service joins the multicast group of the interfaces present when it starts, and never
//! again. So it is restarted whenever this device's own addresses change: a laptop that wakes up in
//! another network finds its peers there.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt, future};
use iroh::address_lookup::{AddressLookup, EndpointData, EndpointInfo, Error as LookupError, Item};
use iroh::{Endpoint, EndpointAddr, EndpointId, TransportAddr};
use iroh_mdns_address_lookup::{DiscoveryEvent, MdnsAddressLookup};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use crate::core::ids::NodeId;

use super::announced::Announced;
use super::endpoint::Net;

/// The name of the service; devices of other programs do not match it.
const SERVICE_NAME: &str = "cansync";

/// How often the local network is queried: roughly the longest time until a moved device is found.
/// The library's default, 700 ms, suits programs that people look at; this one runs for years.
const QUERY_EVERY: Duration = Duration::from_secs(4);

/// The address of mDNS packets (RFC 6762, 3).
const MDNS_GROUP: &str = "224.0.0.251:5353";

/// An event in the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetEvent {
    /// A device, member or not, was announced in the local network at an address worth a dial.
    Seen(NodeId),
    /// The addresses of this device changed, or its endpoint was bound again: all peers are worth a
    /// dial.
    AddressesChanged,
}

/// The stream of network events, from [`Net::events`].
pub struct NetEvents {
    net: Net,
    addresses: BoxStream<'static, EndpointAddr>,
    bindings: watch::Receiver<u64>,
    known: Vec<String>,
    seen: Option<Pin<Box<dyn Stream<Item = DiscoveryEvent> + Send>>>,
}

impl std::fmt::Debug for NetEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NetEvents").field("known", &self.known).finish_non_exhaustive()
    }
}

impl Net {
    /// Returns the network's events from now on. One owner must poll them as long as the endpoint
    /// is in use, because this also keeps mDNS running.
    pub async fn events(&self) -> NetEvents {
        let seen = match self.lan() {
            Some(lan) => {
                // The network may have changed since the endpoint was bound.
                lan.restart();
                lan.subscribe().await
            }
            None => None,
        };
        NetEvents {
            net: self.clone(),
            bindings: self.bindings(),
            addresses: self.watch_addresses(),
            known: self.addresses(),
            seen,
        }
    }
}

impl NetEvents {
    /// The next event. Events beyond a small buffer are dropped.
    ///
    /// # Cancel safety
    /// Safe except that a restart of mDNS may be cancelled; the next change of addresses repeats
    /// it.
    pub async fn next(&mut self) -> NetEvent {
        loop {
            tokio::select! {
                Ok(()) = self.bindings.changed() => {
                    self.addresses = self.net.watch_addresses();
                    self.known = self.net.addresses();
                    return NetEvent::AddressesChanged;
                }
                Some(_) = self.addresses.next() => {
                    if self.have_changed().await {
                        return NetEvent::AddressesChanged;
                    }
                }
                Some(event) = next_of(&mut self.seen) => {
                    if let DiscoveryEvent::Discovered { endpoint_info, .. } = event
                        && self.net.lan().is_some_and(|lan| lan.heard_one(&endpoint_info.data))
                    {
                        return NetEvent::Seen(NodeId(*endpoint_info.endpoint_id.as_bytes()));
                    }
                }
                else => std::future::pending().await,
            }
        }
    }
}

impl NetEvents {
    /// Whether this device's addresses changed. If so, mDNS joins the network anew.
    async fn have_changed(&mut self) -> bool {
        let addresses = self.net.addresses();
        if addresses == self.known {
            return false;
        }
        self.known = addresses;
        if let Some(lan) = self.net.lan() {
            lan.restart();
            self.seen = lan.subscribe().await;
        }
        true
    }
}

async fn next_of<S: Stream + Unpin>(stream: &mut Option<S>) -> Option<S::Item> {
    match stream {
        Some(stream) => stream.next().await,
        None => None,
    }
}

/// The mDNS service of this device; it is replaced while the endpoint lives.
#[derive(Debug, Clone)]
pub(super) struct Lan {
    id: EndpointId,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    service: Option<MdnsAddressLookup>,
    failure: Option<String>,
    /// The addresses that the endpoint last published.
    published: Option<EndpointData>,
    announced: Announced,
    /// How many announcements of other devices were heard.
    heard: u64,
}

impl State {
    fn announce(&self) {
        if let (Some(service), Some(data)) = (&self.service, &self.published) {
            service.publish(data);
        }
    }

    /// The announced addresses to dial now.
    fn worth_a_dial(&mut self, data: &EndpointData) -> Vec<SocketAddr> {
        let own = self.published.iter().flat_map(EndpointData::ip_addrs);
        let own: Vec<_> = own.map(SocketAddr::ip).collect();
        self.announced.worth_a_dial(data.ip_addrs().copied(), &own)
    }
}

impl Lan {
    /// Starts the service and adds it to the endpoint. If it cannot start, that is a warning and
    /// not an error.
    pub(super) fn start(endpoint: &Endpoint) -> anyhow::Result<Self> {
        let lan = Self { id: endpoint.id(), state: Arc::default() };
        lan.restart();
        endpoint.address_lookup()?.add(lan.clone());
        Ok(lan)
    }

    /// Why the service does not work now.
    pub(super) fn failure(&self) -> Option<String> {
        let failure = self.state().failure.clone();
        failure.or_else(|| Some(no_multicast_route()?.to_string()))
    }

    /// How many announcements of other devices were heard.
    pub(super) fn heard(&self) -> u64 {
        self.state().heard
    }

    /// What is wrong with the service now, for people.
    pub(super) fn warning(&self) -> Option<String> {
        let failure = self.failure()?;
        Some(format!(
            "devices in the local network are not found by themselves (mDNS): {failure}; check \
             that a network is connected and multicast is allowed"
        ))
    }

    /// Notes that `device` proved its key after a dial by this device.
    pub(super) fn proved(&self, device: EndpointId) {
        self.state().announced.proved(device);
    }

    /// Counts an announcement, and returns whether it is worth a dial.
    fn heard_one(&self, data: &EndpointData) -> bool {
        let mut state = self.state();
        state.heard += 1;
        !state.worth_a_dial(data).is_empty()
    }

    /// The part of an announcement that is dialled; `None` if nothing is.
    fn admit(&self, item: &Item) -> Option<Item> {
        let mut state = self.state();
        let addresses = state.worth_a_dial(item);
        if addresses.is_empty() {
            return None;
        }
        let device = item.endpoint_id();
        state.announced.dialed(device, &addresses);
        let data = EndpointData::new(addresses.into_iter().map(TransportAddr::Ip).collect());
        let info = EndpointInfo::from_parts(device, data);
        Some(Item::new(info, item.provenance(), item.last_updated()))
    }

    fn restart(&self) {
        let mut state = self.state();
        // The old service must release its socket first.
        state.service = None;
        let service =
            MdnsAddressLookup::builder().service_name(SERVICE_NAME).discovery_cadence(QUERY_EVERY);
        match service.build(self.id) {
            Ok(service) => {
                (state.service, state.failure) = (Some(service), None);
                state.announce();
            }
            Err(error) => state.failure = Some(error.to_string()),
        }
    }

    async fn subscribe(&self) -> Option<Pin<Box<dyn Stream<Item = DiscoveryEvent> + Send>>> {
        let service = self.state().service.clone()?;
        Some(Box::pin(service.subscribe().await))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl AddressLookup for Lan {
    fn publish(&self, data: &EndpointData) {
        let mut state = self.state();
        state.published = Some(data.clone());
        state.announce();
    }

    fn resolve(&self, id: EndpointId) -> Option<BoxStream<'static, Result<Item, LookupError>>> {
        let found = self.state().service.as_ref()?.resolve(id)?;
        let lan = self.clone();
        let admitted = found.filter_map(move |item| {
            future::ready(match item {
                Ok(item) => lan.admit(&item).map(Ok),
                Err(error) => Some(Err(error)),
            })
        });
        Some(admitted.boxed())
    }
}

/// Queries the kernel for a route to the mDNS group; sends nothing.
fn no_multicast_route() -> Option<std::io::Error> {
    std::net::UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.connect(MDNS_GROUP)).err()
}
