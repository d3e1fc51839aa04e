//! Parses server-sent events (the WHATWG HTML standard, 9.2) within bounds.
//!
//! Lines end with LF, CR or CRLF, also across chunks; a byte order mark at the start is dropped; an
//! event without data is ignored. A line or an event that is longer than its reader allows is an
//! error.
//!
//! No library does this within bounds: `eventsource-stream` and `sse-stream` keep an event of any
//! size in memory, and the former parses an unfinished line again with every chunk.

/// An event of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// Its name; `message` when it has none.
    pub(crate) name: String,
    /// Its data; lines are joined by LF.
    pub(crate) data: String,
    /// The last id so far, from this or an earlier event; empty if there was none.
    pub(crate) id: String,
}

/// The error for a line or an event longer than the parser allows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

/// Parses chunks of bytes into events.
#[derive(Debug)]
pub(crate) struct Parser {
    /// The longest line, and the longest data of one event.
    event_bytes_max: usize,
    line: Vec<u8>,
    /// Whether the last byte was a CR: an LF after it belongs to the same line end.
    after_cr: bool,
    past_first_line: bool,
    name: String,
    data: Option<String>,
    id: String,
    /// The number of lines so far, including comments: a sign of life.
    lines: u64,
}

impl Parser {
    /// A parser at the start of a stream, for events of at most this size.
    pub(crate) fn new(event_bytes_max: usize) -> Self {
        Self {
            event_bytes_max,
            line: Vec::new(),
            after_cr: false,
            past_first_line: false,
            name: String::new(),
            data: None,
            id: String::new(),
            lines: 0,
        }
    }

    /// Parses the next bytes; returns the events that they complete.
    pub(crate) fn push(&mut self, chunk: &[u8]) -> Result<Vec<Event>, TooLong> {
        let mut events = Vec::new();
        for &byte in chunk {
            match byte {
                b'\n' if self.after_cr => self.after_cr = false,
                b'\n' | b'\r' => {
                    self.after_cr = byte == b'\r';
                    let line = std::mem::take(&mut self.line);
                    events.extend(self.line(&line)?);
                }
                _ if self.line.len() >= self.event_bytes_max => return Err(TooLong),
                _ => {
                    self.after_cr = false;
                    self.line.push(byte);
                }
            }
        }
        Ok(events)
    }

    /// The number of lines so far.
    pub(crate) fn lines(&self) -> u64 {
        self.lines
    }

    fn line(&mut self, line: &[u8]) -> Result<Option<Event>, TooLong> {
        self.lines += 1;
        let is_first = !std::mem::replace(&mut self.past_first_line, true);
        let line = match line.strip_prefix(b"\xef\xbb\xbf") {
            Some(rest) if is_first => rest,
            _ => line,
        };
        if line.is_empty() {
            let name = std::mem::take(&mut self.name);
            return Ok(self.data.take().map(|data| Event {
                name: if name.is_empty() { "message".into() } else { name },
                data,
                id: self.id.clone(),
            }));
        }
        let line = String::from_utf8_lossy(line);
        let (field, value) = line.split_once(':').unwrap_or((line.as_ref(), ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.name = value.to_owned(),
            "id" if !value.contains('\0') => self.id = value.to_owned(),
            "data" => {
                let data = match self.data.take() {
                    None => value.to_owned(),
                    Some(before) => format!("{before}\n{value}"),
                };
                if data.len() > self.event_bytes_max {
                    return Err(TooLong);
                }
                self.data = Some(data);
            }
            // A comment (empty name), or a field that is not used.
            _ => {}
        }
        Ok(None)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EVENT_BYTES_MAX: usize = 64 * 1024;

    fn events(text: &str) -> Vec<(String, String)> {
        let events = Parser::new(EVENT_BYTES_MAX).push(text.as_bytes()).unwrap();
        events.into_iter().map(|event| (event.name, event.data)).collect()
    }

    fn event(name: &str, data: &str) -> (String, String) {
        (name.to_owned(), data.to_owned())
    }

    #[test]
    fn the_standard_is_followed() {
        let asset = [event("asset", "x")];
        for text in [
            "event: asset\ndata: x\n\n",
            "event: asset\rdata: x\r\r",
            "event: asset\r\ndata: x\r\n\r\n",
            "event:asset\r\ndata:x\n\r\n",
            "\u{feff}event: asset\ndata: x\n\n",
            ": comment\n\n:\nevent: asset\nid: 5\nretry: 1\nnonsense\ndata: x\n\n",
            "event: other\nevent: asset\ndata: x\n\n",
            "event: asset\ndata: x\n\nevent: asset\ndata: never ended\n",
        ] {
            assert_eq!(events(text), asset, "{text:?}");
        }
        assert_eq!(events("data: a\ndata: b\ndata\n\n"), [event("message", "a\nb\n")]);
        assert_eq!(events("data:  two\n\n"), [event("message", " two")]);
        assert_eq!(events("data:\n\n"), [event("message", "")]);
        assert_eq!(events("event: asset\n\n"), []);
        assert_eq!(events("event: a\n\ndata: x\n\n"), [event("message", "x")]);
        assert_eq!(events("\n\u{feff}data: x\n\n"), []);
        assert_eq!(events(""), []);
        let lossy = Parser::new(EVENT_BYTES_MAX).push(b"data: \xff\n\n").unwrap();
        assert_eq!(lossy[0].data, "\u{fffd}");
    }

    #[test]
    fn an_id_counts_until_the_next() {
        let text = b"id: 5\ndata: a\n\ndata: b\n\nid: 7\ndata: c\n\nid: x\0\ndata: d\n\n";
        let events = Parser::new(EVENT_BYTES_MAX).push(text).unwrap();
        let ids: Vec<_> = events.iter().map(|event| event.id.as_str()).collect();
        assert_eq!(ids, ["5", "5", "7", "7"]);
    }

    #[test]
    fn lines_and_events_are_bounded() {
        let field = "data:";
        let longest = "x".repeat(EVENT_BYTES_MAX - field.len());
        let text = format!("{field}{longest}\n\n");
        assert_eq!(events(&text), [event("message", &longest)]);

        let line = vec![b'x'; EVENT_BYTES_MAX + 1];
        assert_eq!(Parser::new(EVENT_BYTES_MAX).push(&line), Err(TooLong));

        let mut parser = Parser::new(EVENT_BYTES_MAX);
        let piece = format!("data:{}\n", "x".repeat(1000));
        let ended = (0..100).any(|_| parser.push(piece.as_bytes()).is_err());
        assert!(ended, "an event of many lines is bounded too");
    }

    #[test]
    fn comments_count_as_signs_of_life() {
        let mut parser = Parser::new(EVENT_BYTES_MAX);
        parser.push(b": a\n: b\n: unfinished").unwrap();
        assert_eq!(parser.lines(), 2);
    }

    proptest! {
        #[test]
        fn where_chunks_are_cut_changes_nothing(
            text in "(event|data|id|:|\r|\n|\r\n|x| ){0,60}",
            cuts in prop::collection::vec(0usize..200, 0..6),
        ) {
            let bytes = text.as_bytes();
            let whole = Parser::new(EVENT_BYTES_MAX).push(bytes).unwrap();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut parser = Parser::new(EVENT_BYTES_MAX);
            let mut pieces = Vec::new();
            for pair in cuts.windows(2) {
                pieces.extend(parser.push(&bytes[pair[0]..pair[1]]).unwrap());
            }
            prop_assert_eq!(pieces, whole);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let _ = Parser::new(EVENT_BYTES_MAX).push(&bytes);
        }
    }
}
