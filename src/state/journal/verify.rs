//! The border of trust: only a [`VerifiedOp`] reaches the database, and only a right signature
//! makes one. Verifying takes about a tenth of a millisecond, so it belongs on worker threads.

use thiserror::Error;

use crate::core::ids::{GroupId, LogId, OpHash};
#[cfg(test)]
use crate::core::journal::op::Change;
use crate::core::journal::op::{Body, LogInfo, SignedOp, op_hash, signed_bytes};
use crate::state::identity::{Identity, verify_signature};
use crate::wire::WireError;
use crate::wire::journal::{decode_body, encode_body};

/// An op whose author signed exactly these bytes for a log of this group.
#[derive(Debug, Clone, PartialEq)]
pub struct VerifiedOp {
    op: SignedOp,
    group: GroupId,
    log: LogId,
    hash: OpHash,
    body: Body,
}

/// Why an op cannot be verified. Its sender is at fault.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OpError {
    /// The author did not sign it, or signed it for another group or log.
    #[error("the signature of an op by {0} is wrong")]
    Signature(String),
    /// The body is malformed or out of bounds.
    #[error(transparent)]
    Body(#[from] WireError),
}

/// Verifies an op's signature over its exact bytes, then decodes it.
///
/// # Errors
/// [`OpError`].
pub fn verify(group: &GroupId, op: SignedOp) -> Result<VerifiedOp, OpError> {
    let log = op.log.id(group);
    if !verify_signature(&op.log.author, &signed_bytes(&log, &op.body), &op.sig) {
        return Err(OpError::Signature(op.log.author.short()));
    }
    let body = decode_body(&op.body)?;
    let hash = op_hash(&log, &op.body);
    Ok(VerifiedOp { group: *group, log, hash, body, op })
}

impl VerifiedOp {
    /// A new op of this device.
    pub(super) fn author(
        identity: &Identity,
        group: &GroupId,
        info: LogInfo,
        body: Body,
    ) -> std::result::Result<Self, WireError> {
        let log = info.id(group);
        let bytes = encode_body(&body)?;
        let sig = identity.sign(&signed_bytes(&log, &bytes));
        let hash = op_hash(&log, &bytes);
        let op = SignedOp { log: info, body: bytes, sig };
        Ok(Self { op, group: *group, log, hash, body })
    }

    /// The op as read by a version that does not know these kinds of changes.
    #[cfg(test)]
    pub(super) fn unread(mut self, is_unknown: impl Fn(&Change) -> bool) -> Self {
        let unknown = self.body.changes.iter_mut().filter(|change| is_unknown(change));
        unknown.for_each(|change| *change = Change::Unknown);
        self
    }

    /// The op as it is sent and stored.
    pub fn signed(&self) -> &SignedOp {
        &self.op
    }

    /// The group it was signed for.
    pub fn group(&self) -> &GroupId {
        &self.group
    }

    /// The log that it belongs to.
    pub fn log(&self) -> LogId {
        self.log
    }

    /// The op's hash.
    pub fn hash(&self) -> OpHash {
        self.hash
    }

    /// The op's content.
    pub fn body(&self) -> &Body {
        &self.body
    }
}
