//! How the pages of signing in look: one style for all of them, in light and dark, without a script or anything from elsewhere.

use std::sync::LazyLock;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};

/// Colours have a contrast of at least 4.5 to 1 against what they stand on (WCAG 2.2, 1.4.3), borders of fields 3 to 1 (1.4.11).
const STYLE: &str = ":root{color-scheme:light dark;--ground:#f6f5f1;--card:#fff;--text:#2b2a27;--quiet:#625e55;--line:#8d877a;--gold:#8f5b0c;\
--on-gold:#fff;--bad:#9c2a1c;--bad-ground:#fbeae7;--shade:0 1px 2px #0002,0 8px 30px #0001}\
@media(prefers-color-scheme:dark){:root{--ground:#1a1917;--card:#24221f;--text:#ece9e3;--quiet:#aaa498;--line:#7d776b;--gold:#e6b052;\
--on-gold:#221a09;--bad:#ffb4a6;--bad-ground:#43211c;--shade:0 1px 2px #0006,0 8px 30px #0004}}\
*{box-sizing:border-box}\
body{margin:0;min-height:100vh;min-height:100dvh;display:grid;place-items:center;padding:1rem;font:1rem/1.5 system-ui,sans-serif;\
background:var(--ground);color:var(--text)}\
main{width:100%;max-width:24rem;padding:2rem;background:var(--card);border-radius:1rem;box-shadow:var(--shade)}\
svg{display:block;width:2.75rem;height:2.75rem;margin-bottom:1rem;color:var(--gold)}\
h1{font-size:1.5rem;line-height:1.25;margin:0 0 .25rem}p{margin:.25rem 0 1rem;overflow-wrap:anywhere}.quiet{color:var(--quiet)}\
label{display:block;margin:1rem 0 .375rem;font-weight:600}\
input{width:100%;min-height:2.75rem;padding:.5rem .75rem;font:inherit;color:inherit;background:var(--ground);border:1px solid var(--line);\
border-radius:.5rem}\
button,a.button{display:block;width:100%;min-height:2.75rem;margin-top:1.5rem;padding:.5rem 1rem;font:inherit;font-weight:600;\
text-align:center;text-decoration:none;line-height:1.75rem;color:var(--on-gold);background:var(--gold);border:1px solid var(--gold);\
border-radius:.5rem;cursor:pointer}\
button.second,a.second{margin-top:.75rem;color:var(--text);background:transparent;border-color:var(--line)}\
button:hover,a.button:hover{filter:brightness(1.08)}\
:focus-visible{outline:3px solid var(--gold);outline-offset:2px}\
.trouble{margin:1rem 0 0;padding:.75rem 1rem;color:var(--bad);background:var(--bad-ground);border-radius:.5rem}\
@media(max-width:26rem){body{place-items:start center;padding:.5rem}main{padding:1.25rem}}";

/// A skep.
const HIVE: &str = "<svg viewBox=\"0 0 48 48\" fill=\"none\" stroke=\"currentColor\" stroke-width=\"3\" stroke-linecap=\"round\" \
aria-hidden=\"true\"><path d=\"M7 41c0-21 6-35 17-35s17 14 17 35z\" stroke-linejoin=\"round\"/><path d=\"M14 17h20M10 25h28M8 33h9M31 33h9\"/>\
<path d=\"M19 41v-5a5 5 0 0 1 10 0v5\"/></svg>";

/// `Content-Security-Policy`: nothing but this style, and in nobody's frame. Where the form leads is not restricted: browsers hold all
/// redirects that follow to it, and services may have some of their own.
pub fn policy() -> &'static str {
    static POLICY: LazyLock<String> = LazyLock::new(|| {
        let hash = BASE64_STANDARD.encode(digest(&SHA256, STYLE.as_bytes()));
        format!("default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; frame-ancestors 'none'")
    });
    &POLICY
}

/// A whole page around `inside`.
pub fn page(title: &str, inside: &Markup) -> String {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="robots" content="noindex";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    (PreEscaped(HIVE))
                    (inside)
                }
            }
        }
    }
    .into_string()
}
