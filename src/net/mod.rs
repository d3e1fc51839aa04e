//! QUIC: the endpoint, tickets, framed streams, pairing. Nothing above this folder names the QUIC
//! library; streams leave it as `AsyncRead` and `AsyncWrite`.

pub mod frame;
