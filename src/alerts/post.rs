//! Posts an event to the URL of a hook, signed as <https://www.standardwebhooks.com> has it, so that
//! receivers can use a library: `webhook-id`, `webhook-timestamp` and `webhook-signature` with an
//! HMAC-SHA256 over `id.timestamp.body`.

use std::time::Duration;

use data_encoding::BASE64;
use reqwest::header::CONTENT_TYPE;
use reqwest::redirect::Policy;
use ring::hmac;

/// The deadline of a request, from the first byte to the answer's header.
const POST_WAIT: Duration = Duration::from_secs(15);

/// The prefix of a secret in text form; the key follows.
const SECRET_PREFIX: &str = "whsec_";

/// The secret of a hook: this device and the receiver know it.
#[derive(Clone)]
pub(super) struct Secret([u8; 32]);

impl Secret {
    /// The secret of the hook with this name. Each has its own, so that no receiver can sign for
    /// another one.
    pub(super) fn of(key: &[u8; 32], hook: &str) -> Self {
        Self(*blake3::keyed_hash(key, hook.as_bytes()).as_bytes())
    }

    /// The text for the receiver.
    pub(super) fn text(&self) -> String {
        format!("{SECRET_PREFIX}{}", BASE64.encode(&self.0))
    }

    fn sign(&self, id: &str, timestamp_s: u64, body: &[u8]) -> String {
        signature(&self.0, id, timestamp_s, body)
    }
}

fn signature(key: &[u8], id: &str, timestamp_s: u64, body: &[u8]) -> String {
    let mut mac = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    mac.update(format!("{id}.{timestamp_s}.").as_bytes());
    mac.update(body);
    format!("v1,{}", BASE64.encode(mac.sign().as_ref()))
}

/// Posts an event. An error says what failed, for people.
///
/// # Cancel safety
/// A dropped call may still have reached the receiver.
pub(super) async fn post(
    url: &str,
    secret: &Secret,
    id: &str,
    timestamp_s: u64,
    body: Vec<u8>,
) -> Result<(), String> {
    // The provider of TLS may be there already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().redirect(Policy::none()).timeout(POST_WAIT).build();
    let client = client.map_err(|error| causes(&error))?;
    let request = client
        .post(url)
        .header(CONTENT_TYPE, "application/json")
        .header("user-agent", concat!("can-sync/", env!("CARGO_PKG_VERSION")))
        .header("webhook-id", id)
        .header("webhook-timestamp", timestamp_s.to_string())
        .header("webhook-signature", secret.sign(id, timestamp_s, &body))
        .body(body);
    let answer = request.send().await.map_err(|error| causes(&error.without_url()))?;
    match answer.status() {
        status if status.is_success() => Ok(()),
        status => Err(format!("the receiver answered {status}")),
    }
}

/// What failed, with the last of its causes: the library's own words say little.
fn causes(error: &reqwest::Error) -> String {
    let mut last = None;
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        (last, cause) = (Some(error.to_string()), error.source());
    }
    let what = match error {
        _ if error.is_timeout() => {
            return format!("the receiver did not answer within {} s", POST_WAIT.as_secs());
        }
        _ if error.is_connect() => "the receiver cannot be reached".to_owned(),
        _ => error.to_string(),
    };
    last.map_or(what.clone(), |last| format!("{what}: {last}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_the_one_of_the_standards_example() {
        // From the specification of Standard Webhooks, section "Signature scheme".
        let key = BASE64.decode(b"MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap_or_default();
        let id = "msg_p5jXN8AQM9LWM0D4loKWxJek";
        let signed = signature(&key, id, 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn each_hook_has_a_secret_of_its_own() {
        let secret = |key: u8, hook: &str| Secret::of(&[key; 32], hook).text();
        assert_eq!(secret(1, "mail"), secret(1, "mail"));
        assert_ne!(secret(1, "mail"), secret(1, "chat"));
        assert_ne!(secret(1, "mail"), secret(2, "mail"));
        assert!(secret(1, "mail").starts_with("whsec_"));
    }
}
