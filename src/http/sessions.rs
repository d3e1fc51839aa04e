//! Who is signed in to the page: one-time codes, and the sessions that they open.
//!
//! A browser cannot read the API's token, and a token must not stand in a URL that it keeps. So the
//! command line, which is known to be this user's, asks for a code; the browser opens a link with it
//! and gets a cookie.
//!
//! S1  A code is good once, for [`CODE_LIFE_MS`].
//! S2  Only hashes of codes and cookies are kept, and hashes are compared in constant time.
//! S3  A session ends [`SESSION_LIFE_MS`] after its start, [`SESSION_IDLE_MS`] after its last
//!     request, when it is revoked, and with the process.
//! S4  A cookie's value is made here at each sign-in; one that a browser brings along is never
//!     adopted.

use std::sync::Arc;

use axum::http::{HeaderMap, header};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// How long a code is good for: the time to open a link.
pub const CODE_LIFE_MS: u64 = 2 * 60 * 1000;

/// How long a session lasts at most.
pub const SESSION_LIFE_MS: u64 = 30 * 24 * 3600 * 1000;

/// How long a session outlives its last request.
pub const SESSION_IDLE_MS: u64 = 7 * 24 * 3600 * 1000;

/// The most codes that wait for a browser; one more replaces the oldest.
const CODES_MAX: usize = 8;

/// The most sessions, a few browsers on a few devices; one more replaces the one idle for longest.
const SESSIONS_MAX: usize = 16;

/// The longest text that a page leaves for the next one.
const NOTE_BYTES_MAX: usize = 4 * 1024;

/// 256 bits, which nobody can guess.
const SECRET_BYTES: usize = 32;

/// The codes and sessions of one server. Clones share them.
#[derive(Clone)]
pub struct Sessions {
    state: Arc<Mutex<State>>,
    /// Cookies go to every port of a host: the name keeps two agents apart.
    cookie: Arc<str>,
    /// The server has TLS: its cookies go over nothing else.
    is_secure: bool,
}

#[derive(Default)]
struct State {
    codes: Vec<(blake3::Hash, u64)>,
    sessions: Vec<Open>,
}

struct Open {
    id: blake3::Hash,
    csrf: String,
    since_ms: u64,
    used_ms: u64,
    ended: CancellationToken,
    note: Option<String>,
    invitation: Option<Invitation>,
}

/// A ticket that a session made and shows until it is used.
#[derive(Clone)]
pub struct Invitation {
    /// The ticket: a secret.
    pub ticket: String,
    /// When it ends, ms since the Unix epoch.
    pub expires_ms: u64,
    /// The digits of the pairings that were there before it.
    pub earlier: Vec<String>,
}

/// A session that a request belongs to.
#[derive(Clone)]
pub struct Session {
    id: blake3::Hash,
    /// The token that each form of the session must carry, against cross-site request forgery.
    pub csrf: String,
    /// Cancelled when the session is revoked.
    pub ended: CancellationToken,
}

/// A fresh code.
pub struct Code {
    /// The code: a secret until it is used.
    pub text: String,
    /// When it ends, ms since the Unix epoch.
    pub expires_ms: u64,
}

impl Sessions {
    /// The sessions of the server on `port`.
    pub fn new(port: u16) -> Self {
        let cookie = format!("can-sync-{port}").into();
        Self { state: Arc::default(), cookie, is_secure: false }
    }

    /// The same sessions for another server of this agent, which uses TLS.
    pub fn with_tls(&self, port: u16) -> Self {
        let cookie = format!("can-sync-{port}").into();
        Self { state: self.state.clone(), cookie, is_secure: true }
    }

    fn attributes(&self) -> &'static str {
        match self.is_secure {
            true => "Path=/; HttpOnly; SameSite=Strict; Secure",
            false => "Path=/; HttpOnly; SameSite=Strict",
        }
    }

    /// Makes a code.
    pub fn make_code(&self, now_ms: u64) -> Code {
        let text = secret();
        let expires_ms = now_ms.saturating_add(CODE_LIFE_MS);
        let mut state = self.state.lock();
        state.forget_expired(now_ms);
        if state.codes.len() == CODES_MAX {
            state.codes.remove(0);
        }
        state.codes.push((hash(&text), expires_ms));
        Code { text, expires_ms }
    }

    /// Uses a code up. Returns the `Set-Cookie` of a new session, `None` if the code is not good.
    pub fn redeem(&self, code: &str, now_ms: u64) -> Option<String> {
        let mut state = self.state.lock();
        state.forget_expired(now_ms);
        let code = hash(code);
        let at = state.codes.iter().position(|(known, _)| *known == code)?;
        state.codes.remove(at);
        if state.sessions.len() == SESSIONS_MAX {
            let idle = (0..SESSIONS_MAX).min_by_key(|at| state.sessions[*at].used_ms)?;
            state.sessions.remove(idle).ended.cancel();
        }
        let value = secret();
        state.sessions.push(Open {
            id: hash(&value),
            csrf: secret(),
            since_ms: now_ms,
            used_ms: now_ms,
            ended: CancellationToken::new(),
            note: None,
            invitation: None,
        });
        let max_age = SESSION_LIFE_MS / 1000;
        let name = &self.cookie;
        Some(format!("{name}={value}; Max-Age={max_age}; {}", self.attributes()))
    }

    /// The session of a request.
    pub fn find(&self, headers: &HeaderMap, now_ms: u64) -> Option<Session> {
        let id = hash(self.cookie_of(headers)?);
        let mut state = self.state.lock();
        state.forget_expired(now_ms);
        let open = state.find(&id)?;
        open.used_ms = now_ms;
        Some(Session { id, csrf: open.csrf.clone(), ended: open.ended.clone() })
    }

    /// The cookie's value. Several cookies of the name are refused: another server on this host may
    /// have set one.
    fn cookie_of<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let pairs = all.flat_map(|value| value.split(';')).map(str::trim);
        let mut ours = pairs.filter_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            (name == &*self.cookie).then_some(value)
        });
        let value = ours.next()?;
        ours.next().is_none().then_some(value)
    }

    /// Ends a session. Returns the `Set-Cookie` that removes its cookie.
    pub fn end(&self, session: &Session) -> String {
        let mut state = self.state.lock();
        if let Some(at) = state.sessions.iter().position(|open| open.id == session.id) {
            state.sessions.remove(at).ended.cancel();
        }
        format!("{}=; Max-Age=0; {}", self.cookie, self.attributes())
    }

    /// Ends every session and forgets every code. Returns how many sessions there were.
    pub fn revoke_all(&self, now_ms: u64) -> usize {
        let mut state = self.state.lock();
        state.forget_expired(now_ms);
        state.codes.clear();
        let ended = std::mem::take(&mut state.sessions);
        ended.iter().for_each(|open| open.ended.cancel());
        ended.len()
    }

    /// Keeps what the session's next page is to say.
    pub fn leave_note(&self, session: &Session, mut note: String) {
        note.truncate(note.floor_char_boundary(NOTE_BYTES_MAX));
        if let Some(open) = self.state.lock().find(&session.id) {
            open.note = Some(note);
        }
    }

    /// Takes what [`Self::leave_note`] has kept.
    pub fn take_note(&self, session: &Session) -> Option<String> {
        self.state.lock().find(&session.id)?.note.take()
    }

    /// Keeps the ticket that the session shows, in place of an earlier one.
    pub fn set_invitation(&self, session: &Session, invitation: Option<Invitation>) {
        if let Some(open) = self.state.lock().find(&session.id) {
            open.invitation = invitation;
        }
    }

    /// The ticket that the session shows.
    pub fn invitation(&self, session: &Session) -> Option<Invitation> {
        self.state.lock().find(&session.id)?.invitation.clone()
    }
}

impl State {
    fn forget_expired(&mut self, now_ms: u64) {
        self.codes.retain(|(_, expires_ms)| now_ms < *expires_ms);
        self.sessions.retain(|open| {
            let is_good = now_ms < open.since_ms.saturating_add(SESSION_LIFE_MS)
                && now_ms < open.used_ms.saturating_add(SESSION_IDLE_MS);
            if !is_good {
                open.ended.cancel();
            }
            is_good
        });
    }

    fn find(&mut self, id: &blake3::Hash) -> Option<&mut Open> {
        self.sessions.iter_mut().find(|open| open.id == *id)
    }
}

impl Session {
    /// Whether a form carries the token of its session.
    pub fn made(&self, csrf: &str) -> bool {
        hash(csrf) == hash(&self.csrf)
    }
}

fn secret() -> String {
    data_encoding::HEXLOWER.encode(&rand::random::<[u8; SECRET_BYTES]>())
}

/// Equality of the result takes constant time.
fn hash(text: &str) -> blake3::Hash {
    blake3::hash(text.as_bytes())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    fn sign_in(sessions: &Sessions, now_ms: u64) -> HeaderMap {
        let set = sessions.redeem(&sessions.make_code(now_ms).text, now_ms).unwrap();
        cookie(set.split(';').next().unwrap())
    }

    fn cookie(text: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::COOKIE, text.parse().unwrap())])
    }

    #[test]
    fn a_code_opens_one_session_and_only_for_a_short_time() {
        let sessions = Sessions::new(5757);
        let code = sessions.make_code(NOW);
        assert_eq!(sessions.redeem("", NOW), None);
        assert_eq!(sessions.redeem(&code.text[1..], NOW), None);
        let set = sessions.redeem(&code.text, NOW).unwrap();
        assert!(set.ends_with("; HttpOnly; SameSite=Strict"), "{set}");
        assert!(!set.contains(&code.text));
        assert_eq!(sessions.redeem(&code.text, NOW), None, "it was used");
        let late = sessions.make_code(NOW);
        assert_eq!(sessions.redeem(&late.text, NOW + CODE_LIFE_MS), None);
    }

    #[test]
    fn only_the_newest_codes_and_the_sessions_used_last_are_kept() {
        let sessions = Sessions::new(5757);
        let codes: Vec<_> = (0..=CODES_MAX).map(|_| sessions.make_code(NOW)).collect();
        assert_eq!(sessions.redeem(&codes[0].text, NOW), None);
        assert!(sessions.redeem(&codes[1].text, NOW).is_some());
        sessions.revoke_all(NOW);
        let cookies: Vec<_> =
            (0..).take(SESSIONS_MAX).map(|at| sign_in(&sessions, NOW + at)).collect();
        let first = sessions.find(&cookies[0], NOW + 100).unwrap();
        sign_in(&sessions, NOW + 101);
        assert!(sessions.find(&cookies[0], NOW + 102).is_some(), "used just now");
        assert!(sessions.find(&cookies[1], NOW + 102).is_none());
        assert!(!first.ended.is_cancelled());
    }

    #[test]
    fn a_session_ends_when_it_is_old_idle_or_revoked() {
        let sessions = Sessions::new(5757);
        let idle = sign_in(&sessions, NOW);
        assert!(sessions.find(&idle, NOW + SESSION_IDLE_MS - 1).is_some());
        assert!(sessions.find(&idle, NOW + 2 * SESSION_IDLE_MS).is_none());
        let old = sign_in(&sessions, NOW);
        let mut now_ms = NOW;
        while now_ms < NOW + SESSION_LIFE_MS {
            assert!(sessions.find(&old, now_ms).is_some());
            now_ms += SESSION_IDLE_MS / 2;
        }
        assert!(sessions.find(&old, now_ms).is_none());
        let stolen = sign_in(&sessions, NOW);
        let session = sessions.find(&stolen, NOW).unwrap();
        sessions.make_code(NOW);
        assert_eq!(sessions.revoke_all(NOW), 1);
        assert!(session.ended.is_cancelled());
        assert!(sessions.find(&stolen, NOW).is_none());
    }

    #[test]
    fn a_cookie_that_was_planted_opens_nothing() {
        let sessions = Sessions::new(5757);
        for planted in ["can-sync-5757=", "can-sync-5757=x", "can-sync-5758=x", "x"] {
            assert!(sessions.find(&cookie(planted), NOW).is_none(), "{planted}");
        }
        let good = sign_in(&sessions, NOW);
        let good = good[header::COOKIE].to_str().unwrap();
        let session = sessions.find(&cookie(&format!("a=b; {good}")), NOW).unwrap();
        assert!(session.made(&session.csrf) && !session.made(""));
        let twice = format!("can-sync-5757=planted; {good}");
        assert!(sessions.find(&cookie(&twice), NOW).is_none(), "whose it is cannot be told");
    }

    #[test]
    fn a_note_is_read_once_and_by_its_session_alone() {
        let sessions = Sessions::new(5757);
        let [one, other] = [(); 2].map(|()| {
            let cookie = sign_in(&sessions, NOW);
            sessions.find(&cookie, NOW).unwrap()
        });
        sessions.leave_note(&one, "ü".repeat(NOTE_BYTES_MAX));
        assert_eq!(sessions.take_note(&other), None);
        assert_eq!(sessions.take_note(&one).unwrap().len(), NOTE_BYTES_MAX);
        assert_eq!(sessions.take_note(&one), None);
        sessions.end(&one);
        sessions.leave_note(&one, "gone".into());
        assert_eq!(sessions.take_note(&one), None);
    }
}
