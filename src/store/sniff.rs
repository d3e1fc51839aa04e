//! Finds out what a content tells of itself: its media type, and when a picture was taken.
//!
//! It runs where a content enters through this process, so that a file has the same attributes
//! whether a command, a program or a folder brings it. The content is hostile:
//!
//! N1  At most [`START_BYTES`] and [`PICTURE_BYTES_MAX`] bytes are read, wherever they point.
//! N2  A parser that fails or panics finds nothing; the content is stored all the same.

use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};

use chrono::NaiveDate;
use exif::{DateTime, Exif, In, Tag, Value};

use crate::core::attributes::{Attribute, Attributes};

/// The bytes that tell the type of a content. Formats that are archives name their first members there.
const START_BYTES: u64 = 8 * 1024;

/// The most bytes that are read of a picture to find out when it was taken: the longest segment of a
/// JPEG is 64 KiB, and the index of a HEIC some hundred.
const PICTURE_BYTES_MAX: u64 = 1024 * 1024;

/// Types that say how a content is packed and not what it is: the name's extension knows better.
const PACKINGS: [&str; 3] = ["application/zip", "application/x-ole-storage", "application/gzip"];

/// Sets the media type and the time a picture was taken, where they are not known and the content or
/// its name tells them. Blocks on the reader.
pub fn fill_in(attributes: &mut Attributes, content: &mut (impl Read + Seek)) {
    if attributes.media_type().is_empty() {
        let mut start = Vec::new();
        // After a read error the bytes read so far decide.
        let _ = content.take(START_BYTES).read_to_end(&mut start);
        let media_type = media_type(&start, attributes.name());
        attributes.fill(Attributes::default().with_text(Attribute::MediaType, media_type));
    }
    let is_picture = attributes.media_type().starts_with("image/");
    if is_picture && attributes.time_ms(Attribute::CapturedMs).is_none() {
        let captured = captured_ms(content);
        attributes.fill(Attributes::default().with_time(Attribute::CapturedMs, captured));
    }
}

/// The media type of a content that starts so; empty when it is not known.
fn media_type(start: &[u8], name: &str) -> &'static str {
    let sniffed = quietly(|| infer::get(start).map(|kind| kind.mime_type()));
    let by_name = mime_guess::from_path(name).first_raw();
    match (sniffed, by_name) {
        // Two or three letters at the start of a text may look like a magic number.
        (Some(_), Some(named)) if named.starts_with("text/") && is_text(start) => named,
        (Some(sniffed), Some(named))
            if sniffed.starts_with("text/") || PACKINGS.contains(&sniffed) =>
        {
            named
        }
        (sniffed, named) => sniffed.or(named).unwrap_or_default(),
    }
}

fn is_text(start: &[u8]) -> bool {
    let is_utf8 = match std::str::from_utf8(start) {
        Ok(_) => true,
        // A letter may be cut off at the end.
        Err(error) => error.error_len().is_none(),
    };
    is_utf8 && !start.contains(&0)
}

/// When a picture was taken, by its own account.
fn captured_ms(content: &mut (impl Read + Seek)) -> Option<i64> {
    content.rewind().ok()?;
    let mut content = BufReader::new(Bounded { content, left: PICTURE_BYTES_MAX });
    quietly(|| {
        let read = exif::Reader::new().continue_on_error(true).read_from_container(&mut content);
        let exif = read.or_else(|error| error.distill_partial_result(|_| {})).ok()?;
        original_time_ms(&exif)
    })
}

fn original_time_ms(exif: &Exif) -> Option<i64> {
    let text = |tag| match &exif.get_field(tag, In::PRIMARY)?.value {
        Value::Ascii(texts) => texts.first().cloned(),
        _ => None,
    };
    let mut time = DateTime::from_ascii(&text(Tag::DateTimeOriginal)?).ok()?;
    if let Some(offset) = text(Tag::OffsetTimeOriginal) {
        // Without one the time counts as UTC.
        let _ = time.parse_offset(&offset);
    }
    if let Some(fraction) = text(Tag::SubSecTimeOriginal) {
        let _ = time.parse_subsec(&fraction);
    }
    let date = NaiveDate::from_ymd_opt(time.year.into(), time.month.into(), time.day.into())?;
    let ms = time.nanosecond.unwrap_or_default() / 1_000_000;
    let (hour, minute, second) = (time.hour.into(), time.minute.into(), time.second.into());
    let local = date.and_hms_milli_opt(hour, minute, second, ms)?;
    let offset_ms = i64::from(time.offset.unwrap_or_default()) * 60_000;
    Some(local.and_utc().timestamp_millis() - offset_ms)
}

/// Runs a parser. A panic in it counts as no result.
fn quietly<T>(parse: impl FnOnce() -> Option<T>) -> Option<T> {
    catch_unwind(AssertUnwindSafe(parse)).unwrap_or_else(|_| {
        tracing::warn!("a content made the parser of its format fail: its attributes are left out");
        None
    })
}

/// A content of which only so many bytes are read, wherever they are. Then it seems to end.
struct Bounded<'a, C> {
    content: &'a mut C,
    left: u64,
}

impl<C: Read> Read for Bounded<'_, C> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.content.take(self.left).read(into)?;
        self.left -= read as u64;
        Ok(read)
    }
}

impl<C: Seek> Seek for Bounded<'_, C> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.content.seek(to)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    /// A TIFF whose only content is when it was taken.
    fn tiff(time: &str, offset: Option<&str>) -> Vec<u8> {
        let mut entries = vec![(0x9003_u16, time)];
        entries.extend(offset.map(|offset| (0x9011, offset)));
        let mut bytes = b"II*\0\x08\0\0\0".to_vec();
        // One entry: where the Exif entries are.
        bytes.extend(1_u16.to_le_bytes());
        bytes.extend([0x69, 0x87, 4, 0, 1, 0, 0, 0, 26, 0, 0, 0]);
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend((entries.len() as u16).to_le_bytes());
        let mut texts_at = bytes.len() + 12 * entries.len() + 4;
        for (tag, text) in &entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend([2, 0]);
            bytes.extend((text.len() as u32 + 1).to_le_bytes());
            bytes.extend((texts_at as u32).to_le_bytes());
            texts_at += text.len() + 1;
        }
        bytes.extend(0_u32.to_le_bytes());
        for (_, text) in &entries {
            bytes.extend([text.as_bytes(), b"\0"].concat());
        }
        bytes
    }

    fn jpeg(tiff: &[u8]) -> Vec<u8> {
        let length = u16::try_from(tiff.len() + 8).unwrap().to_be_bytes();
        [b"\xff\xd8\xff\xe1", &length[..], b"Exif\0\0", tiff, b"\xff\xd9"].concat()
    }

    fn a_box(kind: &[u8; 4], body: &[u8]) -> Vec<u8> {
        [&(body.len() as u32 + 8).to_be_bytes()[..], kind, body].concat()
    }

    /// A HEIC whose Exif item stands after `before` other bytes.
    fn heic(tiff: &[u8], before: usize) -> Vec<u8> {
        let ftyp = a_box(b"ftyp", b"heic\0\0\0\0heicmif1");
        let infe = a_box(b"infe", b"\x02\0\0\0\0\x01\0\0Exif");
        let iinf = a_box(b"iinf", &[b"\0\0\0\0\0\x01", &infe[..]].concat());
        let iloc = |at: u32| {
            let length = tiff.len() as u32 + 4;
            let extent = [at.to_be_bytes(), length.to_be_bytes()].concat();
            a_box(b"iloc", &[b"\0\0\0\0\x44\0\0\x01\0\x01\0\0\0\x01", &extent[..]].concat())
        };
        let meta = |at| a_box(b"meta", &[b"\0\0\0\0", &iinf[..], &iloc(at)[..]].concat());
        let at = ftyp.len() + meta(0).len() + 8 + before;
        let mdat = a_box(b"mdat", &[&vec![0; before][..], &[0; 4], tiff].concat());
        [ftyp, meta(at as u32), mdat].concat()
    }

    fn found(name: &str, content: &[u8]) -> (String, Option<i64>) {
        let mut attributes = Attributes::named(name);
        fill_in(&mut attributes, &mut Cursor::new(content));
        (attributes.media_type().to_owned(), attributes.time_ms(Attribute::CapturedMs))
    }

    #[test]
    fn the_type_is_that_of_the_first_bytes_then_that_of_the_name() {
        let png = b"\x89PNG\r\n\x1a\n0000";
        for (name, content, media_type) in [
            ("a.txt", &png[..], "image/png"),
            ("", png, "image/png"),
            ("a.txt", b"hello", "text/plain"),
            ("a.md", b"BM is how a bitmap starts", "text/markdown"),
            ("a.svg", b"<?xml version=\"1.0\"?><svg/>", "image/svg+xml"),
            ("run.py", b"#!/usr/bin/python3\n", "text/plain"),
            ("run", b"#!/bin/sh\n", "text/x-shellscript"),
            ("a.epub", b"PK\x03\x04", "application/epub+zip"),
            ("a", b"PK\x03\x04", "application/zip"),
            ("a.zzz", b"hello", ""),
            ("", b"", ""),
        ] {
            assert_eq!(found(name, content).0, media_type, "{name}");
        }
    }

    #[test]
    fn a_picture_tells_when_it_was_taken() {
        let (time, at_ms) = ("2024:02:29 12:34:56", 1_709_210_096_000);
        let plain = tiff(time, None);
        assert_eq!(found("a.jpg", &jpeg(&plain)), ("image/jpeg".into(), Some(at_ms)));
        assert_eq!(found("a.tif", &plain), ("image/tiff".into(), Some(at_ms)));
        assert_eq!(found("a.heic", &heic(&plain, 0)), ("image/heif".into(), Some(at_ms)));
        let zoned = jpeg(&tiff(time, Some("+02:00")));
        assert_eq!(found("a.jpg", &zoned).1, Some(at_ms - 7_200_000));
        for wrong in ["2024:02:30 12:34:56", "    :  :     :  :  ", "yesterday", ""] {
            assert_eq!(found("a.jpg", &jpeg(&tiff(wrong, None))).1, None, "{wrong}");
        }
    }

    #[test]
    fn what_is_known_stays() {
        let mut attributes = Attributes::named("a.jpg")
            .with_text(Attribute::MediaType, "image/x")
            .with_time(Attribute::CapturedMs, Some(7));
        let before = attributes.clone();
        let content = jpeg(&tiff("2024:02:29 12:34:56", None));
        fill_in(&mut attributes, &mut Cursor::new(content));
        assert_eq!(attributes, before);
    }

    #[test]
    fn only_so_much_of_a_picture_is_read_wherever_it_points() {
        /// Counts what is read of it.
        struct Counted(Cursor<Vec<u8>>, u64);
        impl Read for Counted {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                let read = self.0.read(into)?;
                self.1 += read as u64;
                Ok(read)
            }
        }
        impl Seek for Counted {
            fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
                self.0.seek(to)
            }
        }
        let plain = tiff("2024:02:29 12:34:56", None);
        let far = heic(&plain, 8 << 20);
        assert!(found("a.heic", &far).1.is_some(), "behind the picture itself");
        let long = [plain, vec![0; 8 << 20]].concat();
        let endless = [&a_box(b"ftyp", b"heic\0\0\0\0heicmif1")[..], b"\0\0\0\0meta"].concat();
        for content in [long, [endless, vec![0; 8 << 20]].concat()] {
            let mut content = Counted(Cursor::new(content), 0);
            let mut attributes = Attributes::named("a.tif");
            fill_in(&mut attributes, &mut content);
            assert!(content.1 <= START_BYTES + PICTURE_BYTES_MAX, "{} bytes", content.1);
        }
    }

    proptest! {
        #[test]
        fn damaged_pictures_are_read_without_harm(
            kind in 0..3_usize,
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..16),
            cut in any::<prop::sample::Index>(),
        ) {
            let plain = tiff("2024:02:29 12:34:56", Some("+02:00"));
            let mut content = [jpeg(&plain), heic(&plain, 3), plain][kind].clone();
            for (at, byte) in damage {
                let at = at.index(content.len());
                content[at] = byte;
            }
            content.truncate(cut.index(content.len()) + 1);
            let mut content = Cursor::new(content);
            let bounded = Bounded { content: &mut content, left: PICTURE_BYTES_MAX };
            let mut content = BufReader::new(bounded);
            // Not `found`, which would hide a panic.
            let read = exif::Reader::new().continue_on_error(true).read_from_container(&mut content);
            if let Ok(exif) = read.or_else(|error| error.distill_partial_result(|_| {})) {
                original_time_ms(&exif);
            }
        }
    }
}
