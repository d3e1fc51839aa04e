//! The options of `up` and `store`.

use std::net::{AddrParseError, SocketAddr};

use clap::Args;

use crate::config::{Given, Layer, Source, Value, check};

/// The options of `can-sync up`. Each is also an environment variable and a key of `config.toml`;
/// see [`crate::config::KEYS`].
#[derive(Debug, Args)]
#[command(
    after_help = "Each option may also stand in the environment, as CAN_SYNC_ and its name in \
    capitals with underscores (CAN_SYNC_BWLIMIT), or in config.toml (bwlimit = \"10M\"). The command \
    line goes first, then the environment, then the file: `can-sync config show`."
)]
pub(crate) struct UpArgs {
    /// Sync this store instead of the embedded one: its URL on a loopback address
    #[arg(long, value_name = "URL", value_parser = |text: &str| check("store", text))]
    store: Option<Value>,
    /// The file that holds the store's key
    #[arg(long, value_name = "FILE", value_parser = |text: &str| check("store_key_file", text))]
    store_key_file: Option<Value>,
    /// The algorithm of the store's hashes, `blake3` or `sha256`, if it does not say it itself
    #[arg(long, value_name = "NAME", value_parser = |text: &str| check("store_hash", text))]
    store_hash: Option<Value>,
    /// The header in which the store takes its key [default: Authorization, as a bearer key]
    #[arg(long, value_name = "NAME", value_parser = |text: &str| check("store_key_header", text))]
    store_key_header: Option<Value>,
    /// Where to serve the API, a loopback address; port 0 for any [default: 127.0.0.1:5757, or the
    /// next free port]
    #[arg(long, value_name = "ADDR", value_parser = |text: &str| check("listen", text))]
    listen: Option<Value>,
    /// Let browsers of the network open the page here, such as `0.0.0.0:5759`, with TLS and after
    /// `can-sync open` [default: nowhere but on this machine]
    #[arg(long, value_name = "ADDR", value_parser = |text: &str| check("page_listen", text))]
    page_listen: Option<Value>,
    /// Let programs of the network use WebDAV here, such as `0.0.0.0:5759`, with TLS and the password
    /// of `can-sync dav password` [default: nowhere but on this machine]
    #[arg(long, value_name = "ADDR", value_parser = |text: &str| check("dav_listen", text))]
    dav_listen: Option<Value>,
    /// Use the local network alone: no relay, no discovery service
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_parser = |text: &str| check("offline", text))]
    offline: Option<Value>,
    /// Use this relay instead of the public ones; `off` for none
    #[arg(long, value_name = "URL", value_parser = |text: &str| check("relay", text))]
    relay: Option<Value>,
    /// Look here for members that are not found otherwise: an address or a host name, and the port;
    /// may be given several times
    #[arg(long, value_name = "HOST:PORT", value_parser = |text: &str| check("peer", text))]
    peer: Vec<Value>,
    /// How fast contents may move, all peers together: `10M` bytes a second, `1M:500k` up and down,
    /// or a timetable, "08:00,512k 18:00,off" or "Mon-08:00,1M Fri-18:00,off", in local time
    #[arg(long, value_name = "LIMIT", value_parser = |text: &str| check("bwlimit", text))]
    bwlimit: Option<Value>,
    /// The same for each peer alone; both limits hold
    #[arg(long, value_name = "LIMIT", value_parser = |text: &str| check("bwlimit_per_peer", text))]
    bwlimit_per_peer: Option<Value>,
    /// Do not limit what stays within the local network
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_parser = |text: &str| check("bwlimit_lan_exempt", text))]
    bwlimit_lan_exempt: Option<Value>,
    /// How fast the store is read again to find damage: `10M` bytes a second, `off`, or
    /// `auto`, which reads all of it within 30 days [default: auto]
    #[arg(long, value_name = "RATE", value_parser = |text: &str| check("scrub_rate", text))]
    scrub_rate: Option<Value>,
    /// What becomes of the bytes here of assets that `forget` named: `keep` or `delete`
    #[arg(long, value_name = "RULE", value_parser = |text: &str| check("forgotten", text))]
    forgotten: Option<Value>,
    /// How long contents in the trash stay on this device: `30d`, or `all` for ever [default: all]
    #[arg(long, value_name = "TIME", value_parser = |text: &str| check("trash_keep", text))]
    trash_keep: Option<Value>,
    /// How long the contents of earlier versions of folders' files stay here [default: all]
    #[arg(long, value_name = "TIME", value_parser = |text: &str| check("versions_keep", text))]
    versions_keep: Option<Value>,
    /// Alert when a device of the group was not seen for so long, or `off` [default: 7d]
    #[arg(long, value_name = "TIME", value_parser = |text: &str| check("alert_away", text))]
    alert_away: Option<Value>,
    /// Alert when a device was connected for so long without becoming the same [default: 1d]
    #[arg(long, value_name = "TIME", value_parser = |text: &str| check("alert_out_of_sync", text))]
    alert_out_of_sync: Option<Value>,
    /// Alert when assets were on one device alone for so long [default: 1d]
    #[arg(long, value_name = "TIME", value_parser = |text: &str| check("alert_one_copy", text))]
    alert_one_copy: Option<Value>,
    /// Alert when less than this is free on the disk, before assets are not taken in any more
    /// [default: off]
    #[arg(long, value_name = "SIZE", value_parser = |text: &str| check("alert_free_space", text))]
    alert_free_space: Option<Value>,
}

/// The arguments of `can-sync store`.
#[derive(Debug, Args)]
pub(crate) struct StoreArgs {
    /// Where to serve the API, a loopback address; port 0 for any [default: 127.0.0.1:5757, or the
    /// next free port]
    #[arg(long, value_name = "ADDR", value_parser = parse_listen)]
    pub(super) listen: Option<SocketAddr>,
}

fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let Value::Text(text) = check("listen", text)? else {
        return Err("expected an address".into());
    };
    text.parse().map_err(|error: AddrParseError| error.to_string())
}

impl UpArgs {
    /// What the command line sets.
    pub(super) fn layer(self) -> Layer {
        let peers = (!self.peer.is_empty()).then(|| {
            let texts = self.peer.into_iter().flat_map(|value| match value {
                Value::List(texts) => texts,
                Value::Text(text) => vec![text],
                Value::Switch(_) => Vec::new(),
            });
            Value::List(texts.collect())
        });
        let given = [
            ("store", self.store),
            ("store_key_file", self.store_key_file.map(below_this_folder)),
            ("store_hash", self.store_hash),
            ("store_key_header", self.store_key_header),
            ("listen", self.listen),
            ("page_listen", self.page_listen),
            ("dav_listen", self.dav_listen),
            ("offline", self.offline),
            ("relay", self.relay),
            ("peer", peers),
            ("bwlimit", self.bwlimit),
            ("bwlimit_per_peer", self.bwlimit_per_peer),
            ("bwlimit_lan_exempt", self.bwlimit_lan_exempt),
            ("scrub_rate", self.scrub_rate),
            ("forgotten", self.forgotten),
            ("trash_keep", self.trash_keep),
            ("versions_keep", self.versions_keep),
            ("alert_away", self.alert_away),
            ("alert_out_of_sync", self.alert_out_of_sync),
            ("alert_one_copy", self.alert_one_copy),
            ("alert_free_space", self.alert_free_space),
        ];
        let given = given.into_iter().filter_map(|(key, value)| Some((key, value?)));
        given.map(|(key, value)| (key, Given { value, source: Source::Flag })).collect()
    }
}

/// Makes a path of the command line absolute. It is relative to the current folder; a path in the
/// file is relative to the file's folder.
fn below_this_folder(path: Value) -> Value {
    let absolute = std::path::absolute(path.to_string());
    absolute.map_or(path, |path| Value::Text(path.to_string_lossy().into_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::KEYS;

    #[derive(Parser)]
    struct Up {
        #[command(flatten)]
        args: UpArgs,
    }

    #[test]
    fn every_option_of_up_is_a_key_of_the_configuration_and_every_key_an_option() {
        for key in KEYS {
            let option = format!("--{}", key.name.replace('_', "-"));
            let texts = ["off", "true", "127.0.0.1:1", "sha256", "keep", "7d", "1G"]
                .map(|text| format!("{option}={text}"));
            let given = texts.iter().find_map(|text| Up::try_parse_from(["up", text]).ok());
            let layer = given.unwrap_or_else(|| panic!("{option} takes nothing")).args.layer();
            assert_eq!(layer.keys().collect::<Vec<_>>(), [&key.name]);
        }
        let options = <Up as clap::CommandFactory>::command().get_arguments().count();
        assert_eq!(options, KEYS.len());
    }
}
