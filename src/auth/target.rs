//! Where somebody goes back to after signing in: a path of the same host and nothing else, so that nobody is sent to a stranger who
//! looks like us (CWE-601).

use percent_encoding::percent_decode_str;

/// Bytes of a path and query; longer ones are none that a page linked to.
pub const MAX: usize = 2000;
/// What is ours below each host.
pub const RESERVED: &str = ".skep";

/// `text` if it is a path and query of the same host, else `/`.
pub fn target(text: &str) -> &str {
    if is_target(text) { text } else { "/" }
}

/// Is `text` a path and query that every browser resolves to the same host, whatever it normalizes?
pub fn is_target(text: &str) -> bool {
    // Browsers drop tabs and line ends, and read a backslash as a slash.
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"\\#\"<>`{}|^".contains(&byte);
    if text.len() > MAX || !text.starts_with('/') || !text.bytes().all(plain) {
        return false;
    }
    let path = text.split('?').next().unwrap_or(text);
    // Decoded, because something on the way may decode it.
    let decoded: Vec<u8> = percent_decode_str(path).collect();
    if decoded.iter().any(|byte| *byte == b'\\' || byte.is_ascii_control()) || decoded.get(1) == Some(&b'/') {
        return false;
    }
    // A browser would have resolved dots; ours would only ask to sign in again, or out.
    let odd = |part: &[u8]| part == b"." || part == b".." || part.eq_ignore_ascii_case(RESERVED.as_bytes());
    !decoded.split(|byte| *byte == b'/').any(odd)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_paths_of_the_same_host_are_gone_back_to() {
        for good in [
            "/",
            "/a/b?c=d&e=%2F%2f",
            "/a//b",
            "/?to=https://evil.test//x",
            "/%C3%A4?q=%0d%0a",
            "/a:b@c",
            "/x;y=1",
            "/.well-known/x",
            "/a%2Fb",
        ] {
            assert_eq!(target(good), good);
        }
        for bad in [
            "",
            "a",
            "?a",
            "//evil",
            "///evil",
            "/\\evil",
            "\\\\evil",
            "\\/evil",
            "https:evil",
            "https://evil",
            "HTTPS://evil",
            "javascript:alert(1)",
            "data:,x",
            "/%2F/evil",
            "/%2fevil",
            "/%5cevil",
            "/%5C/evil",
            "/\tevil",
            "/\t/evil",
            "\t//evil",
            "/\n/evil",
            " /a",
            "/ /evil",
            "/a b",
            "/a\r\nSet-Cookie: x=y",
            "/a%0d%0aX: y",
            "/%00",
            "/a\0",
            "/.skep/",
            "/.skep/sign-out",
            "/.SKEP/x",
            "/%2eskep/sign-out",
            "/.%73kep",
            "/a/../.skep/sign-out",
            "/./.skep",
            "/..//evil",
            "/.//evil",
            "/%2e%2e//evil",
            "/%2e/x",
            "/a/..",
            "/a/%5c..%5c..",
            "／／evil",
            "/／evil",
            "/\u{2215}evil",
            "/ä",
            "/\u{202e}x",
            "/\u{a0}",
            "/#",
            "/a#//evil",
            "/<script>",
            "/\"x",
            "@evil",
            "/\u{feff}/evil",
            ":80/",
        ] {
            assert_eq!(target(bad), "/", "{bad:?}");
        }
        assert_eq!(target(&format!("/{}", "a".repeat(MAX))), "/");
        assert_ne!(target(&format!("/{}", "a".repeat(MAX - 1))), "/");
    }

    /// As a browser resolves it (WHATWG URL).
    fn stays(text: &str) -> bool {
        let base = url::Url::parse("https://host/x").expect("a URL");
        let to = base.join(target(text)).expect("resolvable");
        to.scheme() == "https"
            && to.host_str() == Some("host")
            && to.port().is_none()
            && to.path().split('/').nth(1).is_some_and(|first| !first.eq_ignore_ascii_case(RESERVED))
    }

    proptest! {
        #[test]
        fn whatever_is_asked_for_the_browser_stays(text in "\\PC{0,60}") {
            prop_assert!(stays(&text));
        }

        #[test]
        fn so_it_does_for_what_an_attacker_would_try(
            text in r"(/|\\|//|%2f|%5c|%2e|\.|\.\.|\.skep|\t|\n|:|@|https:|evil\.test|\?|#|;|a| |\x00|%09|／|。){0,10}",
        ) {
            prop_assert!(stays(&text));
            let below = format!("/{text}");
            prop_assert!(stays(&below));
        }
    }
}
