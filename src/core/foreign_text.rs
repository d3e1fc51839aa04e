//! Makes text by another device or program fit to be shown in a log line, on a terminal, or in an
//! event.
//!
//! T1  [`visible`] returns no control character, no invisible one, none that changes the direction
//!     of its neighbours, and no more than `chars_max` characters.

/// The visible characters of `text`, at most `chars_max`.
pub fn visible(text: &str, chars_max: usize) -> String {
    text.chars().filter(|c| !is_unshowable(*c)).take(chars_max).collect()
}

/// True for characters that act on a terminal, or on how the text around them looks.
pub fn is_unshowable(character: char) -> bool {
    character.is_control() || is_invisible(character)
}

/// Characters that show as nothing or change how their neighbours show: zero-width and direction
/// marks (UAX #9, UTR #36), line and paragraph separators, fillers, annotations and tags.
fn is_invisible(character: char) -> bool {
    matches!(
        character,
        '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_words_neither_act_on_the_terminal_nor_hide_nor_turn_around() {
        let words = "\u{1b}[31mfull\n\u{202e}txt\u{2066}\u{2028}\u{200b}\u{3164}\0 für „3“ – 日本";
        assert_eq!(visible(words, 100), "[31mfulltxt für „3“ – 日本");
        assert_eq!(visible(&"ä".repeat(1000), 200).chars().count(), 200);
        let all = (0..=0x10_ffff).filter_map(char::from_u32).collect::<String>();
        assert!(!visible(&all, usize::MAX).chars().any(is_unshowable));
    }
}
