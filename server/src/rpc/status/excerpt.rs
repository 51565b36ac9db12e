//! Bounds the length of messages, which may quote what a client has sent.

/// Maximum length of a quoted text in a message, in characters: long enough to
/// recognise one's own text.
const MAX_QUOTED_CHARS: usize = 200;

/// Maximum length of the message of a status, in bytes. It is sent in a header
/// with up to 3 bytes for each of its own, and twice in the details with 4 bytes
/// for 3; some clients accept no more than 8 KiB of headers.
const MAX_STATUS_BYTES: usize = 1000;

/// Shortens a message: each text in quotation marks, as `{:?}` writes it, to
/// 200 characters, and the whole to 1000 bytes. An ellipsis stands for the
/// rest.
pub(crate) fn shorten(message: String) -> String {
    // Most messages: a text has no more characters than bytes.
    if message.len() <= MAX_QUOTED_CHARS {
        return message;
    }
    let mut shortened = shorten_quotes(&message);
    if shortened.len() > MAX_STATUS_BYTES {
        shortened.truncate(shortened.floor_char_boundary(MAX_STATUS_BYTES - '…'.len_utf8()));
        shortened.push('…');
    }
    shortened
}

fn shorten_quotes(message: &str) -> String {
    let mut shortened = String::new();
    let mut quoted_chars = None;
    let mut is_escaped = false;
    for c in message.chars() {
        let is_quotation_mark = c == '"' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        match &mut quoted_chars {
            Some(count) if !is_quotation_mark => {
                *count += 1;
                match *count {
                    ..=MAX_QUOTED_CHARS => shortened.push(c),
                    count if count == MAX_QUOTED_CHARS + 1 => shortened.push('…'),
                    _ => {}
                }
                continue;
            }
            Some(_) => quoted_chars = None,
            None if is_quotation_mark => quoted_chars = Some(0),
            None => {}
        }
        shortened.push(c);
    }
    shortened
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_quoted_text_is_shortened_and_what_follows_it_is_kept() {
        let name = "a\"".repeat(50_000);
        let message = shorten(format!("invalid name {name:?}: use letters, as in \"abc\""));
        let kept = format!("{name:?}").chars().take(201).collect::<String>();
        assert_eq!(
            message,
            format!("invalid name {kept}…\": use letters, as in \"abc\"")
        );
    }

    #[test]
    fn a_message_within_the_limits_stays_as_it_is() {
        for message in [
            "there is no model \"x\"".to_owned(),
            format!("{:?}", "é".repeat(200)),
            "é".repeat(500),
        ] {
            assert_eq!(shorten(message.clone()), message);
        }
    }

    #[test]
    fn a_long_message_without_quotes_is_cut_at_its_end() {
        let message = shorten("é".repeat(501));
        assert_eq!(message, "é".repeat(498) + "…");
    }
}
