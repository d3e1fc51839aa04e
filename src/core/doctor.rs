//! What `doctor` found: judges what was measured on this machine and its network, and names a remedy
//! for each thing that is wrong. Measuring is done elsewhere; nothing measured leaves the machine.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::core::units::{bytes, utc};

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// All is well.
    Ok,
    /// The subject was not checked; the text says why.
    Skipped,
    /// It works, but not as well as it could.
    Warning,
    /// It does not work.
    Failed,
}

/// One line of `doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    /// The name of the check. Names do not change between versions.
    pub name: String,
    /// The result.
    pub verdict: Verdict,
    /// The result of the check, as a sentence.
    pub found: String,
    /// What the user should do; null if there is nothing to do.
    #[schema(required)]
    pub remedy: Option<String>,
}

impl Check {
    /// All is well.
    pub fn ok(name: &str, found: impl Into<String>) -> Self {
        Self::new(name, Verdict::Ok, found, None)
    }

    /// It was not checked.
    pub fn skipped(name: &str, why: impl Into<String>) -> Self {
        Self::new(name, Verdict::Skipped, why, None)
    }

    /// It works, but not as well as it could.
    pub fn warning(name: &str, found: impl Into<String>, remedy: &str) -> Self {
        Self::new(name, Verdict::Warning, found, Some(remedy))
    }

    /// It does not work.
    pub fn failed(name: &str, found: impl Into<String>, remedy: &str) -> Self {
        Self::new(name, Verdict::Failed, found, Some(remedy))
    }

    fn new(name: &str, verdict: Verdict, found: impl Into<String>, remedy: Option<&str>) -> Self {
        let (name, remedy) = (name.to_owned(), remedy.map(str::to_owned));
        Self { name, verdict, found: found.into(), remedy }
    }
}

/// What was measured of the network.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NetworkFacts {
    /// Nothing may be sent beyond the local network.
    pub offline: bool,
    /// Whether a relay may be used.
    pub has_relay: bool,
    /// The IPv4 addresses of the machine's interfaces, without loopback.
    pub ipv4_addresses: u64,
    /// The IPv6 addresses of the machine's interfaces, without loopback and link-local ones.
    pub ipv6_addresses: u64,
    /// Why a UDP packet from this machine to itself, by its own address, did not arrive; null: it did.
    #[schema(required)]
    pub udp_error: Option<String>,
    /// What probes over UDP to relays found; null: none was made, or none was answered in time.
    #[schema(required)]
    pub probes: Option<ProbeFacts>,
    /// Whether the connection to the relay is up; null: there is none to be made.
    #[schema(required)]
    pub relay_connected: Option<bool>,
    /// Why the last attempt to connect to the relay failed.
    #[schema(required)]
    pub relay_error: Option<String>,
    /// How far the clock is ahead of the relay's, in milliseconds; null: unknown.
    #[schema(required)]
    pub relay_clock_ahead_ms: Option<i64>,
    /// What the router offers for port mapping; null: it was not asked, or did not answer.
    #[schema(required)]
    pub port_mapping: Option<PortMappingFacts>,
    /// Why multicast does not work; null: it does.
    #[schema(required)]
    pub multicast_error: Option<String>,
    /// How many announcements of other devices were heard in the local network.
    pub announcements_heard: u64,
}

/// What probes over UDP to relays found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProbeFacts {
    /// A round trip over IPv4 succeeded.
    pub udp_v4: bool,
    /// A round trip over IPv6 succeeded.
    pub udp_v6: bool,
    /// Whether the NAT shows another address to each destination; null: unknown.
    #[schema(required)]
    pub nat_varies: Option<bool>,
    /// Whether this machine's public IPv4 address is one of its own; null: unknown.
    #[schema(required)]
    pub has_public_v4: Option<bool>,
    /// The latency of the nearest relay, in milliseconds.
    #[schema(required)]
    pub relay_latency_ms: Option<f64>,
    /// A login page of the network intercepts traffic.
    #[schema(required)]
    pub captive_portal: Option<bool>,
}

/// What the router offers for port mapping.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortMappingFacts {
    /// Whether the router answers UPnP.
    pub upnp: bool,
    /// Whether the router answers PCP (RFC 6887).
    pub pcp: bool,
    /// Whether the router answers NAT-PMP (RFC 6886).
    pub nat_pmp: bool,
}

/// A latency above this is worth a warning: every round trip over the relay takes as long.
const RELAY_LATENCY_MS_MAX: f64 = 300.0;

/// Judges the network.
pub fn network(facts: &NetworkFacts) -> Vec<Check> {
    let mut checks = vec![udp_in(facts)];
    let offline = "offline = true: nothing is sent beyond the local network";
    match (&facts.probes, facts.offline, facts.has_relay) {
        (_, true, _) | (_, _, false) => {
            let why = if facts.offline { offline } else { "no relay is configured to probe with" };
            for name in ["udp-out", "nat", "relay", "port-mapping"] {
                checks.push(Check::skipped(name, why));
            }
        }
        (probes, ..) => {
            checks.push(udp_out(probes.as_ref()));
            checks.push(nat(probes.as_ref()));
            checks.push(relay(facts));
            checks.push(port_mapping(facts));
        }
    }
    checks.push(ip(facts));
    checks.push(mdns(facts));
    checks.push(relay_clock(facts));
    checks
}

fn udp_in(facts: &NetworkFacts) -> Check {
    match &facts.udp_error {
        None => Check::ok("udp-in", "UDP packets to this machine's own address arrive"),
        Some(error) => Check::failed(
            "udp-in",
            format!("a UDP packet to this machine's own address did not arrive: {error}"),
            "connect to a network, and allow UDP for can-sync in the firewall of this machine",
        ),
    }
}

fn udp_out(probes: Option<&ProbeFacts>) -> Check {
    let remedy = "allow UDP to the internet in the router or firewall; until then devices elsewhere \
                  are reached through a relay alone";
    match probes {
        Some(ProbeFacts { captive_portal: Some(true), .. }) => Check::failed(
            "udp-out",
            "a login page of this network intercepts traffic",
            "open a browser and log in to the network",
        ),
        Some(ProbeFacts { udp_v4: true, udp_v6, .. }) => {
            let v6 = if *udp_v6 { " and IPv6" } else { "" };
            Check::ok("udp-out", format!("UDP to the internet works over IPv4{v6}"))
        }
        Some(ProbeFacts { udp_v6: true, .. }) => {
            Check::ok("udp-out", "UDP to the internet works over IPv6 alone")
        }
        Some(_) => Check::failed("udp-out", "no UDP packet came back from the internet", remedy),
        None => Check::failed("udp-out", "no probe of the network was answered in time", remedy),
    }
}

fn nat(probes: Option<&ProbeFacts>) -> Check {
    match probes.map(|probes| (probes.nat_varies, probes.has_public_v4)) {
        Some((_, Some(true))) => Check::ok("nat", "this machine has a public IPv4 address"),
        Some((Some(false), _)) => {
            Check::ok("nat", "behind a NAT that keeps one address for all: direct paths are found")
        }
        Some((Some(true), _)) => Check::warning(
            "nat",
            "behind a NAT that shows another address to each destination (symmetric)",
            "turn on UPnP, PCP or NAT-PMP in the router, forward the UDP port, or use IPv6; else \
             devices behind such NATs talk through the relay",
        ),
        Some((None, _)) | None => Check::skipped("nat", "not known: too few probes were answered"),
    }
}

fn relay(facts: &NetworkFacts) -> Check {
    let latency = facts.probes.as_ref().and_then(|probes| probes.relay_latency_ms);
    match (facts.relay_connected, latency) {
        (Some(true), Some(ms)) if ms > RELAY_LATENCY_MS_MAX => Check::warning(
            "relay",
            format!("connected to a relay {ms:.0} ms away"),
            "name a nearer relay with --relay URL",
        ),
        (Some(true), Some(ms)) => {
            Check::ok("relay", format!("connected to a relay {ms:.0} ms away"))
        }
        (Some(true), None) => Check::ok("relay", "connected to a relay"),
        (Some(false) | None, _) => {
            let error =
                facts.relay_error.as_ref().map_or(String::new(), |text| format!(": {text}"));
            Check::failed(
                "relay",
                format!("no relay is reached{error}"),
                "allow HTTPS to the relay in the firewall, check --relay, or run without one \
                 (relay = \"off\")",
            )
        }
    }
}

fn port_mapping(facts: &NetworkFacts) -> Check {
    let Some(PortMappingFacts { upnp, pcp, nat_pmp }) = facts.port_mapping else {
        return Check::skipped("port-mapping", "the router did not answer whether it maps ports");
    };
    let offered: Vec<&str> = [(upnp, "UPnP"), (pcp, "PCP"), (nat_pmp, "NAT-PMP")]
        .into_iter()
        .filter_map(|(is_there, name)| is_there.then_some(name))
        .collect();
    let probes = facts.probes.as_ref();
    let needs_it = probes.is_some_and(|probes| probes.nat_varies == Some(true));
    match (offered.is_empty(), needs_it) {
        (false, _) => {
            Check::ok("port-mapping", format!("the router offers {}", offered.join(", ")))
        }
        (true, true) => Check::warning(
            "port-mapping",
            "the router maps no ports, and its NAT is symmetric",
            "turn on UPnP, PCP or NAT-PMP in the router",
        ),
        (true, false) => Check::ok("port-mapping", "the router maps no ports; it need not"),
    }
}

fn ip(facts: &NetworkFacts) -> Check {
    let NetworkFacts { ipv4_addresses, ipv6_addresses, .. } = facts;
    if ipv4_addresses + ipv6_addresses == 0 {
        let found = "this machine has no network address but loopback and link-local ones";
        return Check::failed("addresses", found, "connect a network");
    }
    Check::ok("addresses", format!("{ipv4_addresses} IPv4, {ipv6_addresses} IPv6"))
}

fn mdns(facts: &NetworkFacts) -> Check {
    match (&facts.multicast_error, facts.announcements_heard) {
        (Some(error), _) => Check::failed(
            "mdns",
            format!("devices of this network are not found by themselves: {error}"),
            "connect a network, and allow multicast to UDP port 5353 in the firewall",
        ),
        (None, 0) => Check::warning(
            "mdns",
            "no other device was heard in this network",
            "if one runs in this network: allow multicast to UDP port 5353 on both, and turn off \
             client isolation in the access point",
        ),
        (None, heard) => Check::ok("mdns", format!("announcements of devices heard: {heard}")),
    }
}

/// A clock that is off by more is worth a warning; beyond ten minutes edits are held back.
const CLOCK_OFF_MS_MAX: u64 = 30_000;

fn relay_clock(facts: &NetworkFacts) -> Check {
    match facts.relay_clock_ahead_ms {
        None => Check::skipped("clock-relay", "no relay told its time"),
        Some(ahead_ms) => clock("clock-relay", "the relay's", ahead_ms),
    }
}

/// Judges this device's clock against another.
pub fn clock(name: &str, whose: &str, ahead_ms: i64) -> Check {
    let off_ms = ahead_ms.unsigned_abs();
    let side = if ahead_ms > 0 { "ahead of" } else { "behind" };
    let found = format!("this clock is {} s {side} {whose}", off_ms / 1000);
    let remedy = "turn on time synchronisation (NTP)";
    match off_ms {
        0..=CLOCK_OFF_MS_MAX => Check::ok(name, found),
        _ if off_ms > crate::core::limits::FUTURE_MS_MAX => Check::failed(name, found, remedy),
        _ => Check::warning(name, found, remedy),
    }
}

/// A clock before this time was never set: the program is newer.
const CLOCK_MS_MIN: u64 = 1_790_000_000_000;

/// Judges this device's clock by itself.
pub fn own_clock(now_ms: u64, is_synchronised: Option<bool>) -> Check {
    let found = format!("it is {}", utc(now_ms));
    let remedy = "turn on time synchronisation (NTP)";
    match is_synchronised {
        _ if now_ms < CLOCK_MS_MIN => Check::failed("clock", found, remedy),
        Some(false) => Check::warning("clock", format!("{found}, not synchronised"), remedy),
        Some(true) => Check::ok("clock", format!("{found}, synchronised")),
        None => Check::ok("clock", found),
    }
}

/// What was measured of a disk.
#[derive(Debug, Clone, PartialEq)]
pub struct DiskFacts {
    /// What is on it, for people: "state" or "store".
    pub holds: &'static str,
    /// The name of its file system, if it is known.
    pub file_system: Option<&'static str>,
    /// How long an fsync of a small new file took, in milliseconds; an error otherwise.
    pub fsync_ms: Result<f64, String>,
    /// The bytes that may still be written.
    pub free_bytes: u64,
    /// The disk's size.
    pub size_bytes: u64,
    /// The free space below which nothing is stored.
    pub floor_bytes: u64,
}

/// An fsync that takes longer makes every edit feel slow.
const FSYNC_MS_MAX: f64 = 200.0;

/// File systems on which SQLite's locks or fsync are not to be relied on.
const NETWORK_FILE_SYSTEMS: [&str; 5] = ["nfs", "smb", "cifs", "fuse", "9p"];

/// Judges a disk: writing, space, kind.
pub fn disk(facts: &DiskFacts) -> Vec<Check> {
    let name = |what: &str| format!("{}-{what}", facts.holds);
    let fsync = match &facts.fsync_ms {
        Err(error) => Check::failed(
            &name("disk"),
            format!("a file cannot be written: {error}"),
            "check that the disk is mounted for writing, has space, and belongs to this user",
        ),
        Ok(ms) if *ms > FSYNC_MS_MAX => Check::warning(
            &name("disk"),
            format!("an fsync took {ms:.1} ms"),
            "the disk is slow or busy: every edit waits for it; a faster disk helps",
        ),
        Ok(ms) => Check::ok(&name("disk"), format!("an fsync took {ms:.1} ms")),
    };
    let free = format!("{} of {} free", bytes(facts.free_bytes), bytes(facts.size_bytes));
    let space = match facts.free_bytes {
        free_bytes if free_bytes < facts.floor_bytes => Check::failed(
            &name("space"),
            format!("{free}: nothing is stored below {}", bytes(facts.floor_bytes)),
            "make space on the disk",
        ),
        free_bytes if free_bytes < facts.floor_bytes.saturating_mul(2) => Check::warning(
            &name("space"),
            format!("{free}: nothing is stored below {}", bytes(facts.floor_bytes)),
            "make space on the disk soon",
        ),
        _ => Check::ok(&name("space"), free),
    };
    let kind = match facts.file_system {
        Some(kind) if NETWORK_FILE_SYSTEMS.contains(&kind) => Check::warning(
            &name("file-system"),
            format!("{kind}: locks and fsync of such file systems are not always to be relied on"),
            "keep the home on a local disk",
        ),
        Some(kind) => Check::ok(&name("file-system"), kind),
        None => Check::ok(&name("file-system"), "of an unknown kind"),
    };
    vec![fsync, space, kind]
}

/// The limits of the kernel's file notices, and how many directories are bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchFacts {
    /// The most directories that a user may watch; `None`: the system has no such limit.
    pub watches_max: Option<u64>,
    /// The most watchers that a user may have.
    pub instances_max: Option<u64>,
}

/// Fewer are too few for a home directory.
const WATCHES_MIN: u64 = 65_536;
const INSTANCES_MIN: u64 = 64;

/// Judges the limits of the kernel's file notices.
pub fn watches(facts: WatchFacts) -> Check {
    let (Some(watches), Some(instances)) = (facts.watches_max, facts.instances_max) else {
        return Check::skipped("inotify", "this system has no limits of inotify");
    };
    let found = format!("{watches} directories and {instances} watchers for each user");
    match watches < WATCHES_MIN || instances < INSTANCES_MIN {
        false => Check::ok("inotify", found),
        true => Check::warning(
            "inotify",
            found,
            "large folders are scanned instead of watched: sysctl fs.inotify.max_user_watches=524288 \
             fs.inotify.max_user_instances=1024",
        ),
    }
}

/// Judges the modes of files that only this user may read: each path that is open to others, with
/// its mode.
pub fn modes(checked: usize, open: &[(String, u32)]) -> Check {
    let Some((path, mode)) = open.first() else {
        let found =
            format!("{checked} keys, databases and folders are readable for this user alone");
        return Check::ok("modes", found);
    };
    let more =
        if open.len() > 1 { format!(", and {} more", open.len() - 1) } else { String::new() };
    Check::failed(
        "modes",
        format!("{path} has mode {mode:04o}{more}"),
        "chmod go-rwx what is named; if others may have read the key, start over as a new device",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(checks: &[Check], name: &str) -> Verdict {
        let check = checks.iter().find(|check| check.name == name);
        check.map_or_else(|| panic!("no check {name}: {checks:?}"), |check| check.verdict)
    }

    fn well() -> NetworkFacts {
        NetworkFacts {
            has_relay: true,
            ipv4_addresses: 1,
            probes: Some(ProbeFacts {
                udp_v4: true,
                nat_varies: Some(false),
                relay_latency_ms: Some(20.0),
                ..ProbeFacts::default()
            }),
            relay_connected: Some(true),
            relay_clock_ahead_ms: Some(-400),
            port_mapping: Some(PortMappingFacts::default()),
            announcements_heard: 1,
            ..NetworkFacts::default()
        }
    }

    #[test]
    fn a_network_that_works_has_no_remedies() {
        let checks = network(&well());
        assert!(checks.iter().all(|check| check.verdict == Verdict::Ok), "{checks:?}");
        assert!(checks.iter().all(|check| check.remedy.is_none()));
    }

    #[test]
    fn each_thing_that_is_wrong_with_a_network_is_one_line_with_a_remedy() {
        let probes = |change: fn(&mut ProbeFacts)| {
            let mut facts = well();
            change(facts.probes.get_or_insert_default());
            facts
        };
        let changed = |change: fn(&mut NetworkFacts)| {
            let mut facts = well();
            change(&mut facts);
            facts
        };
        for (facts, name, expected) in [
            (probes(|probes| probes.udp_v4 = false), "udp-out", Verdict::Failed),
            (probes(|probes| probes.captive_portal = Some(true)), "udp-out", Verdict::Failed),
            (probes(|probes| probes.nat_varies = Some(true)), "nat", Verdict::Warning),
            (probes(|probes| probes.nat_varies = Some(true)), "port-mapping", Verdict::Warning),
            (probes(|probes| probes.relay_latency_ms = Some(900.0)), "relay", Verdict::Warning),
            (changed(|facts| facts.probes = None), "udp-out", Verdict::Failed),
            (changed(|facts| facts.relay_connected = Some(false)), "relay", Verdict::Failed),
            (changed(|facts| facts.udp_error = Some("x".into())), "udp-in", Verdict::Failed),
            (changed(|facts| facts.ipv4_addresses = 0), "addresses", Verdict::Failed),
            (changed(|facts| facts.multicast_error = Some("x".into())), "mdns", Verdict::Failed),
            (changed(|facts| facts.announcements_heard = 0), "mdns", Verdict::Warning),
            (changed(|f| f.relay_clock_ahead_ms = Some(60_000)), "clock-relay", Verdict::Warning),
            (changed(|f| f.relay_clock_ahead_ms = Some(-700_000)), "clock-relay", Verdict::Failed),
        ] {
            let checks = network(&facts);
            assert_eq!(verdict(&checks, name), expected, "{name}");
            let wrong = checks.iter().filter(|check| check.verdict >= Verdict::Warning);
            assert!(wrong.into_iter().all(|check| check.remedy.is_some()), "{checks:?}");
        }
    }

    #[test]
    fn offline_nothing_beyond_the_local_network_is_judged() {
        let facts = NetworkFacts { offline: true, probes: None, ..well() };
        let checks = network(&facts);
        for name in ["udp-out", "nat", "relay", "port-mapping"] {
            assert_eq!(verdict(&checks, name), Verdict::Skipped, "{name}");
        }
        assert_eq!(verdict(&checks, "udp-in"), Verdict::Ok);
    }

    #[test]
    fn disks_are_judged_by_what_is_written_on_them() {
        let good = DiskFacts {
            holds: "state",
            file_system: Some("ext4"),
            fsync_ms: Ok(3.0),
            free_bytes: 10 << 30,
            size_bytes: 20 << 30,
            floor_bytes: 1 << 30,
        };
        let checks = disk(&good);
        assert!(checks.iter().all(|check| check.verdict == Verdict::Ok), "{checks:?}");
        let slow = disk(&DiskFacts { fsync_ms: Ok(900.0), ..good.clone() });
        assert_eq!(verdict(&slow, "state-disk"), Verdict::Warning);
        let dead = disk(&DiskFacts { fsync_ms: Err("read-only".into()), ..good.clone() });
        assert_eq!(verdict(&dead, "state-disk"), Verdict::Failed);
        let tight = disk(&DiskFacts { free_bytes: (1 << 30) + 1, ..good.clone() });
        assert_eq!(verdict(&tight, "state-space"), Verdict::Warning);
        let full = disk(&DiskFacts { free_bytes: 5, ..good.clone() });
        assert_eq!(verdict(&full, "state-space"), Verdict::Failed);
        let remote = disk(&DiskFacts { file_system: Some("nfs"), ..good });
        assert_eq!(verdict(&remote, "state-file-system"), Verdict::Warning);
    }

    #[test]
    fn clocks_watches_and_modes_are_judged() {
        let now_ms = CLOCK_MS_MIN + 1;
        assert_eq!(own_clock(now_ms, Some(true)).verdict, Verdict::Ok);
        assert_eq!(own_clock(now_ms, Some(false)).verdict, Verdict::Warning);
        assert_eq!(own_clock(0, None).verdict, Verdict::Failed);
        let limits = |watches_max, instances_max| WatchFacts { watches_max, instances_max };
        assert_eq!(watches(limits(Some(8_192), Some(128))).verdict, Verdict::Warning);
        assert_eq!(watches(limits(Some(524_288), Some(128))).verdict, Verdict::Ok);
        assert_eq!(watches(limits(None, None)).verdict, Verdict::Skipped);
        assert_eq!(modes(3, &[]).verdict, Verdict::Ok);
        let open = modes(3, &[("/home/key".into(), 0o644)]);
        assert_eq!(open.verdict, Verdict::Failed);
        assert!(open.found.contains("/home/key has mode 0644"), "{}", open.found);
    }
}
