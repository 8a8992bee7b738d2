//! The secret that signs dynamic updates (TSIG, RFC 8945), as servers' administrators hand it over.

use zeroize::Zeroizing;

use super::record::Secret;
use crate::config::TsigAlgorithm;
use crate::diagnostic::brief;

/// What a key file says.
#[derive(Debug, PartialEq, Eq)]
pub struct Key {
    /// `None`: the file holds the secret alone.
    pub name: Option<String>,
    pub algorithm: Option<TsigAlgorithm>,
    /// Base64.
    pub secret: Secret,
}

/// Reads a key: its secret in base64 alone, or BIND's `key "name" { algorithm hmac-sha256; secret "..."; };`.
///
/// # Errors
/// What is wrong with the file, to be put behind its name.
pub fn key(text: &str) -> Result<Key, String> {
    if !text.contains('{') {
        let secret: String = text.split_whitespace().collect();
        return Ok(Key { name: None, algorithm: None, secret: Secret::new(secret) });
    }
    let comment = |line: &&str| line.trim_start().starts_with("//") || line.trim_start().starts_with('#');
    let text = Zeroizing::new(text.lines().filter(|line| !comment(line)).collect::<Vec<_>>().join("\n"));
    let rest = text.trim_start().strip_prefix("key").ok_or("does not begin with `key`")?;
    let (name, body) = rest.split_once('{').ok_or("has no { after the key's name")?;
    let (body, _) = body.split_once('}').ok_or("has no } at the key's end")?;
    let bare = |text: &str| text.trim().trim_matches('"').to_owned();
    let (mut algorithm, mut secret) = (None, None);
    for statement in body.split(';').map(str::trim).filter(|statement| !statement.is_empty()) {
        let (word, value) = statement.split_once(char::is_whitespace).ok_or("holds a statement without a value")?;
        match word {
            "algorithm" => algorithm = Some(algorithm_of(&bare(value))?),
            "secret" => secret = Some(Secret::new(bare(value))),
            _ => return Err("holds more than algorithm and secret".to_owned()),
        }
    }
    let name = bare(name).trim_end_matches('.').to_owned();
    if name.is_empty() {
        return Err("does not name its key".to_owned());
    }
    Ok(Key { name: Some(name), algorithm, secret: secret.ok_or("holds no secret")? })
}

fn algorithm_of(name: &str) -> Result<TsigAlgorithm, String> {
    match name.to_ascii_lowercase().trim_end_matches('.') {
        "hmac-sha256" => Ok(TsigAlgorithm::Sha256),
        "hmac-sha384" => Ok(TsigAlgorithm::Sha384),
        "hmac-sha512" => Ok(TsigAlgorithm::Sha512),
        other => Err(format!("asks for {}, which is too weak or unknown", brief(other))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_are_read_as_tsig_keygen_prints_them_and_bare() {
        let printed = "key \"skep.\" {\n\talgorithm hmac-sha512;\n\tsecret \"c2VjcmV0//8=\";\n};\n";
        let read = key(printed).unwrap();
        assert_eq!(
            (read.name.as_deref(), read.algorithm, read.secret.reveal()),
            (Some("skep"), Some(TsigAlgorithm::Sha512), "c2VjcmV0//8=")
        );
        assert_eq!(key(&format!("# made by hand\n  // {{}}\n{printed}")).unwrap(), read);
        let bare = key("c2Vj\ncmV0//8=\n").unwrap();
        assert_eq!((bare.name, bare.algorithm, bare.secret.reveal()), (None, None, "c2VjcmV0//8="));
        for (text, said) in [
            ("skep {", "begin with `key`"),
            ("// key skep { }", "begin with `key`"),
            ("key skep\n# {", "no {"),
            ("key skep { secret x", "no }"),
            ("key skep { algorithm hmac-sha256; };", "no secret"),
            ("key { secret x; };", "does not name"),
            ("key skep { algorithm hmac-md5; secret x; };", "too weak"),
            ("key skep { secret; };", "without a value"),
            ("key skep { colour blue; };", "more than"),
        ] {
            assert!(key(text).unwrap_err().contains(said), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_key_file_is_read_or_refused(text in r#"(key [a-z]{0,3}\{)?[ "a-z{};/#\n]*"#) {
            if let Ok(read) = key(&text) {
                let shown = format!("{read:?}");
                prop_assert!(shown.ends_with("secret: Secret(..) }"), "{}", shown);
            }
        }

        #[test]
        fn what_tsig_keygen_prints_is_read(name in "[a-z][a-z0-9.-]{0,20}[a-z]", secret in "[A-Za-z0-9+/]{8,88}={0,2}") {
            let read = key(&format!("key \"{name}\" {{\n\talgorithm hmac-sha256;\n\tsecret \"{secret}\";\n}};\n")).unwrap();
            prop_assert_eq!((read.name.as_deref(), read.secret.reveal()), (Some(&*name), &*secret));
        }
    }
}
