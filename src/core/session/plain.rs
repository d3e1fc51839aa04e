//! The state of a connection that speaks the plain protocol, `can-sync/1`: both whole sets are
//! exchanged once, then each new asset is sent. Such a connection cannot compare sets again, so when
//! something did not arrive a new connection takes its place.

/// How soon assets that did not arrive are tried again. Each time both whole sets are exchanged.
const PLAIN_AGAIN_MS: u64 = 300_000;

/// The state of the plain protocol on one connection.
#[derive(Debug, Default)]
pub(crate) struct Plain {
    is_exchanged: bool,
    again_ms: Option<u64>,
}

impl Plain {
    /// Whether the whole sets have been exchanged.
    pub(crate) fn is_exchanged(&self) -> bool {
        self.is_exchanged
    }

    /// Whether both sides hold the same, as far as this protocol can tell.
    pub(crate) fn is_in_sync(&self) -> bool {
        self.is_exchanged && self.again_ms.is_none()
    }

    /// Notes that the whole sets have been exchanged.
    pub(crate) fn exchanged(&mut self) {
        self.is_exchanged = true;
    }

    /// Notes that something did not arrive.
    pub(crate) fn repeat(&mut self, now_ms: u64) {
        self.again_ms.get_or_insert(now_ms + PLAIN_AGAIN_MS);
    }

    /// When to close the connection, so that a new one exchanges the sets again.
    pub(crate) fn again_ms(&self) -> Option<u64> {
        self.again_ms
    }
}
