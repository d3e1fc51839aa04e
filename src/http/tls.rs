//! The certificate of this device for browsers and WebDAV clients on the network. It is signed by
//! itself: people compare its fingerprint.
//!
//! It has a key of its own, of a kind that all clients take (P-256): browsers take none with Ed25519,
//! the kind of the device's identity.

use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use rcgen::{CertificateParams, DnType, KeyPair};
use ring::digest;
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;

/// The names in the certificate. Users of a client that compares names make it trust the fingerprint.
const NAMES: [&str; 3] = ["can-sync", "localhost", "127.0.0.1"];

/// The certificate, ready to be served.
#[derive(Clone)]
pub struct Certificate {
    /// Accepts TLS handshakes with the certificate.
    pub acceptor: TlsAcceptor,
    /// SHA-256 of the certificate, in pairs of hex digits as browsers show it.
    pub fingerprint: String,
}

impl Certificate {
    /// A new key with its certificate, as [`Self::read`] takes them.
    ///
    /// # Errors
    /// There is no randomness.
    pub fn make() -> Result<Vec<u8>> {
        let key = KeyPair::generate().context("making a key for TLS")?;
        let mut params = CertificateParams::new(NAMES.map(str::to_owned))?;
        params.distinguished_name.push(DnType::CommonName, "can-sync");
        let certificate = params.self_signed(&key).context("making a certificate")?;
        let (key, certificate) = (key.serialize_der(), certificate.der().to_vec());
        let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
        Ok(format!("{}\n{}\n", hex(&key), hex(&certificate)).into_bytes())
    }

    /// Reads what [`Self::make`] gave.
    ///
    /// # Errors
    /// The bytes are not a key and a certificate.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(bytes).context("reading the certificate")?;
        let mut parts = text.lines().map(|line| data_encoding::HEXLOWER.decode(line.as_bytes()));
        let (Some(Ok(key)), Some(Ok(certificate))) = (parts.next(), parts.next()) else {
            return Err(anyhow!(
                "the file `tls` holds no certificate: remove it, and the next start makes a new one"
            ));
        };
        let hash = digest::digest(&digest::SHA256, &certificate);
        let pairs: Vec<String> = hash.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![CertificateDer::from(certificate)], key)
            .context("reading the certificate")?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), fingerprint: pairs.join(":") })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_read_again_with_the_same_fingerprint() {
        let bytes = Certificate::make().unwrap();
        let certificate = Certificate::read(&bytes).unwrap();
        assert_eq!(certificate.fingerprint.len(), 32 * 3 - 1);
        assert_eq!(Certificate::read(&bytes).unwrap().fingerprint, certificate.fingerprint);
        assert_ne!(
            Certificate::read(&Certificate::make().unwrap()).unwrap().fingerprint,
            certificate.fingerprint
        );
        for wrong in [b"".as_slice(), b"00\n", b"00\n00\n", b"x\ny\n", &bytes[..100]] {
            assert!(Certificate::read(wrong).is_err());
        }
    }
}
