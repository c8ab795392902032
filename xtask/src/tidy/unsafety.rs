//! Rules about `unsafe`: where it may stand, and that each use says why it is sound.

use super::Report;
use super::lists::{COUNTING_ALLOCATORS, DENIES_UNSAFE, FORBIDS_UNSAFE, UNSAFE_ROOMS};
use super::source::{Source, is_ident, is_punct, line_of};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// What an `unsafe` begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Block,
    Impl,
    /// A function or a trait: it states a contract.
    Contract,
    /// `unsafe extern "C" { ... }` or `#[unsafe(...)]`.
    Outside,
    /// The type of a function pointer.
    FnType,
}

/// What surrounds the tokens that are looked at.
#[derive(Clone, Copy)]
struct Around {
    in_trait_impl: bool,
    in_allocator: bool,
}

/// Checks one file.
pub(super) fn check(source: &Source, report: &mut Report<'_>) {
    check_root(source, report);
    let around = Around {
        in_trait_impl: false,
        in_allocator: false,
    };
    check_level(source, source.tokens.clone(), around, report);
}

fn check_root(source: &Source, report: &mut Report<'_>) {
    let path = source.path.as_str();
    let wanted: &[&str] = if FORBIDS_UNSAFE.contains(&path) {
        &["#![forbid(unsafe_code)]"]
    } else if DENIES_UNSAFE.contains(&path) {
        &["#![deny(unsafe_code)]", "#![forbid(unsafe_code)]"]
    } else {
        return;
    };
    let stated = source
        .lines
        .iter()
        .any(|line| wanted.contains(&line.code.trim()));
    if !stated {
        report.add(
            0,
            "unsafe code is not ruled out",
            format!("write `{}`", wanted[0]),
        );
    }
}

fn check_level(source: &Source, tokens: TokenStream, around: Around, report: &mut Report<'_>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut header_start = 0;
    for (at, token) in tokens.iter().enumerate() {
        if is_ident(Some(token), "unsafe") {
            check_unsafe(source, &tokens[at..], around, report);
        }
        match token {
            TokenTree::Group(group) => {
                let braces = group.delimiter() == Delimiter::Brace;
                let inner = match braces {
                    true => around_body(&tokens[header_start..at], around),
                    false => around,
                };
                check_level(source, group.stream(), inner, report);
                if braces {
                    header_start = at + 1;
                }
            }
            TokenTree::Punct(punct) if punct.as_char() == ';' => header_start = at + 1,
            _ => {}
        }
    }
}

/// What surrounds the tokens in the braces after `header`.
fn around_body(header: &[TokenTree], outer: Around) -> Around {
    let Some(start) = header
        .iter()
        .position(|token| is_ident(Some(token), "impl"))
    else {
        return Around {
            in_trait_impl: false,
            ..outer
        };
    };
    let header = &header[start..];
    let for_at = header
        .iter()
        .enumerate()
        .position(|(at, token)| is_ident(Some(token), "for") && !is_punct(header.get(at + 1), '<'));
    let is_allocator = for_at.is_some_and(|at| is_ident(header.get(at - 1), "GlobalAlloc"));
    Around {
        in_trait_impl: for_at.is_some(),
        in_allocator: outer.in_allocator || is_allocator,
    }
}

/// Checks the `unsafe` that `tokens` begins with.
fn check_unsafe(source: &Source, tokens: &[TokenTree], around: Around, report: &mut Report<'_>) {
    let line = line_of(&tokens[0]);
    let kind = kind_of(tokens);
    check_room(source, tokens, around, report);
    let wanted: &[&str] = match kind {
        Kind::FnType => return,
        // The contract is the trait's.
        Kind::Contract if around.in_trait_impl => return,
        Kind::Contract => &["# Safety", "SAFETY:"],
        Kind::Block | Kind::Impl | Kind::Outside => &["SAFETY:"],
    };
    let comments = source.comments_of(line);
    let said = comments
        .iter()
        .any(|comment| wanted.iter().any(|word| comment.contains(word)));
    if !said {
        let to_do = match kind {
            Kind::Contract => "state the caller's duty under `# Safety`",
            _ => "prove it in a comment `// SAFETY:` right above",
        };
        report.add(line, "unsafe without its reason", to_do);
    }
}

fn check_room(source: &Source, tokens: &[TokenTree], around: Around, report: &mut Report<'_>) {
    let path = source.path.as_str();
    let line = line_of(&tokens[0]);
    if UNSAFE_ROOMS.iter().any(|room| path.starts_with(room)) {
        return;
    }
    if !COUNTING_ALLOCATORS
        .iter()
        .any(|(listed, _)| *listed == path)
    {
        let rooms = UNSAFE_ROOMS.join(", ");
        report.add(
            line,
            "unsafe outside its rooms",
            format!("move it into one of {rooms}"),
        );
        return;
    }
    let header = tokens
        .iter()
        .take_while(|token| !matches!(token, TokenTree::Group(_)));
    let is_allocator = header
        .clone()
        .any(|token| is_ident(Some(token), "GlobalAlloc"));
    if !around.in_allocator && !is_allocator {
        report.add(
            line,
            "unsafe that is no allocator",
            "here only `GlobalAlloc` may be unsafe",
        );
    }
}

fn kind_of(tokens: &[TokenTree]) -> Kind {
    let mut next = 1;
    if is_ident(tokens.get(next), "extern") {
        next += 1;
        if matches!(tokens.get(next), Some(TokenTree::Literal(_))) {
            next += 1;
        }
        if matches!(tokens.get(next), Some(TokenTree::Group(_))) {
            return Kind::Outside;
        }
    }
    match tokens.get(next) {
        Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Parenthesis => {
            Kind::Outside
        }
        Some(TokenTree::Ident(ident)) if ident == "impl" => Kind::Impl,
        Some(TokenTree::Ident(ident)) if ident == "trait" => Kind::Contract,
        Some(TokenTree::Ident(ident)) if ident == "fn" => match tokens.get(next + 1) {
            Some(TokenTree::Group(_)) => Kind::FnType,
            _ => Kind::Contract,
        },
        _ => Kind::Block,
    }
}
