//! Connections of an HTTP server, on loopback or with TLS on the network: how long they are held, and
//! how they end.
//!
//! A client holds one of the [`places`](super::places), and must send its header within
//! [`HEADER_DEADLINE`] (which closes idle connections too) and its body without pauses longer than
//! [`BODY_PAUSE_MAX`]. [`serve`] owns every task that it starts; when it returns, none is left.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::http::header;
use axum::response::Response;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;

use super::places::{Place, Places};

/// How long a request's header may take, from the connect or the last answer.
pub const HEADER_DEADLINE: Duration = Duration::from_secs(5);

/// The longest pause between two pieces of a request's body. Only requests with the key have their
/// body read; it may come from a person who types or a program that computes.
pub const BODY_PAUSE_MAX: Duration = Duration::from_secs(600);

/// How long answers under way may take to end when the server is stopped.
pub const STOP_DEADLINE: Duration = Duration::from_secs(2);

/// How long a request that was answered early may go on sending, unread, before its connection is
/// closed: an earlier close would reach the client before the answer.
const LINGER: Duration = Duration::from_secs(5);

/// The longest request line and header. Metadata in a header is the largest (`Asset-Metadata` of
/// `proto/store.proto`, about 100 KiB in base64).
const HEADER_BYTES_MAX: usize = 256 * 1024;

/// The pause after a failed `accept` (no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `router` on `listener`, which must be a loopback one, until `stop` is cancelled: then
/// event streams end at once and other answers have [`STOP_DEADLINE`].
///
/// A [`Guard`](super::guard::Guard) in the router decides which connections are the owner's.
/// Dropping the future cuts every connection.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
) -> io::Result<()> {
    let address = listener.local_addr()?;
    if !address.ip().is_loopback() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("refusing to serve on {address}: only loopback addresses are allowed"),
        ));
    }
    serve_until_stopped(Listener::Tcp(listener), router, stop).await;
    Ok(())
}

/// Serves programs of this user and of root on a Unix socket. The kernel tells who connects, so the
/// router needs no guard but [`own_user`](super::guard::own_user).
pub async fn serve_own_user(listener: UnixListener, router: Router, stop: CancellationToken) {
    serve_until_stopped(Listener::Unix(listener), router, stop).await;
}

/// Serves the network with TLS, as [`serve`] does loopback. What `router` lets pass is its guard's to
/// decide.
pub async fn serve_network(
    listener: TcpListener,
    tls: TlsAcceptor,
    router: Router,
    stop: CancellationToken,
) {
    serve_until_stopped(Listener::Network(listener, tls), router, stop).await;
}

/// The listening socket.
enum Listener {
    Tcp(TcpListener),
    Network(TcpListener, TlsAcceptor),
    Unix(UnixListener),
}

type Stream = Either<TcpStream, UnixStream>;

impl Listener {
    /// The next connection; `None` when it is not allowed.
    ///
    /// # Cancel safety
    /// Safe.
    async fn accept(&self) -> io::Result<Option<Stream>> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // Small answers must not wait for the acknowledgement of earlier ones.
                let _ = stream.set_nodelay(true);
                Ok(peer.ip().is_loopback().then_some(Either::Left(stream)))
            }
            Self::Network(listener, _) => {
                let (stream, _) = listener.accept().await?;
                let _ = stream.set_nodelay(true);
                Ok(Some(Either::Left(stream)))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let user = stream.peer_cred()?.uid();
                let is_trusted = user == rustix::process::geteuid().as_raw() || user == 0;
                if !is_trusted {
                    tracing::warn!(user, "another user connected to the socket for commands");
                }
                Ok(is_trusted.then_some(Either::Right(stream)))
            }
        }
    }
}

async fn serve_until_stopped(listener: Listener, router: Router, stop: CancellationToken) {
    let places = Places::default();
    let tls = match &listener {
        Listener::Network(_, tls) => Some(tls.clone()),
        Listener::Tcp(_) | Listener::Unix(_) => None,
    };
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok(Some(stream)) => stream,
            Ok(None) => continue,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the local API");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (place, router, stop) = (places.take(), router.clone(), stop.clone());
        connections.spawn(connection(stream, tls.clone(), place, router, stop));
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    if timeout(STOP_DEADLINE, ended).await.is_err() {
        connections.shutdown().await;
    }
}

/// Serves one connection from its first byte to its last.
async fn connection(
    stream: Stream,
    tls: Option<TlsAcceptor>,
    place: Arc<Place>,
    router: Router,
    stop: CancellationToken,
) {
    let Some(tls) = tls else { return requests(stream, place, router, stop).await };
    let (close, stopped) = (place.close.clone(), stop.clone());
    let stream = tokio::select! {
        stream = timeout(HEADER_DEADLINE, tls.accept(stream)) => stream,
        () = close.cancelled() => return,
        () = stopped.cancelled() => return,
    };
    if let Ok(Ok(stream)) = stream {
        requests(stream, place, router, stop).await;
    }
}

/// Serves the requests of a connection.
async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    place: Arc<Place>,
    router: Router,
    stop: CancellationToken,
) {
    let close = place.close.clone();
    let service = Requests { router: TowerToHyperService::new(router), place, stop: stop.clone() };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = close.cancelled() => return,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    // `serve` cuts a connection that does not end in time.
    let _ = connection.await;
}

/// Passes a connection's requests to the router.
struct Requests {
    router: TowerToHyperService<Router>,
    place: Arc<Place>,
    stop: CancellationToken,
}

impl Service<hyper::Request<Incoming>> for Requests {
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn call(&self, request: hyper::Request<Incoming>) -> Self::Future {
        let mut request = request;
        request.extensions_mut().insert(self.place.clone());
        let under_way = UnderWay(self.place.clone());
        // A client that waits for `100 Continue` has sent nothing that could be lost.
        let may_linger = !request.headers().contains_key(header::EXPECT);
        let mut rest = None;
        let request = request.map(|body| {
            let body = Arc::new(Mutex::new(body));
            rest = may_linger.then(|| body.clone());
            Body::new(Impatient { body, pause: None })
        });
        let answer = self.router.call(request);
        let stop = self.stop.clone();
        Box::pin(async move {
            let mut response = answer.await?;
            under_way.0.answered();
            // An event stream never ends by itself; other answers may finish.
            let ends_on_stop = response
                .headers()
                .get(header::CONTENT_TYPE)
                .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
            let stop = ends_on_stop.then(|| Box::pin(stop.cancelled_owned()) as BoxFuture<_>);
            let rest = rest.filter(|rest| !rest.lock().is_end_stream());
            let linger = rest.map(|rest| (rest, Box::pin(sleep(LINGER))));
            if linger.is_some() {
                // An answer of known length would end at its last byte, without lingering.
                response.headers_mut().remove(header::CONTENT_LENGTH);
            }
            Ok(response.map(|body| Body::new(Answer { body, stop, linger, _under_way: under_way })))
        })
    }
}

/// A request's body, shared by its reader and by the lingering after an early answer.
type SharedBody = Arc<Mutex<Incoming>>;

/// A request whose answer is not complete.
struct UnderWay(Arc<Place>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.sent();
    }
}

/// A request body whose pauses are bounded.
struct Impatient {
    body: SharedBody,
    /// Runs while a reader waits.
    pause: Option<Pin<Box<Sleep>>>,
}

impl HttpBody for Impatient {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let polled = Pin::new(&mut *self.body.lock()).poll_frame(cx);
        if let Poll::Ready(frame) = polled {
            self.pause = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let pause = self.pause.get_or_insert_with(|| Box::pin(sleep(BODY_PAUSE_MAX)));
        pause.as_mut().poll(cx).map(|()| {
            let late = "the request body stopped coming";
            Some(Err(io::Error::new(io::ErrorKind::TimedOut, late).into()))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.lock().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.lock().size_hint()
    }
}

/// The body of a response. While it exists the request counts as under way; it ends early when the
/// server stops.
struct Answer {
    body: Body,
    stop: Option<BoxFuture<'static, ()>>,
    /// The rest of the request after an early answer, and how long it is read and dropped.
    linger: Option<(SharedBody, Pin<Box<Sleep>>)>,
    _under_way: UnderWay,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(stop) = &mut self.stop
            && stop.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(None);
        }
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let (None, Some((rest, end))) = (&frame, &mut self.linger) {
            while end.as_mut().poll(cx).is_pending() {
                let unread = Pin::new(&mut *rest.lock()).poll_frame(cx);
                if !matches!(std::task::ready!(unread), Some(Ok(_))) {
                    break;
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.linger.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.linger {
            Some(_) => SizeHint::default(),
            None => self.body.size_hint(),
        }
    }
}
