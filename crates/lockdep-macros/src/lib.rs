//! The attribute `#[lockdep::test]`, to be used by that name: see there.
//!
//! The tokens of a function are handed on as they are, with a call around its body. Nothing of it
//! has to be understood, so there is no parser here.
#![forbid(unsafe_code)]

use proc_macro::{Delimiter, Group, TokenStream, TokenTree};

/// What the body becomes the argument of.
const CHECK: &str = "::lockdep::testing::check";
const TEST: &str = "#[::core::prelude::v1::test]";

/// A test with a validator of its own, which fails on what is reported; see `lockdep::test`.
#[proc_macro_attribute]
pub fn test(arguments: TokenStream, function: TokenStream) -> TokenStream {
    let expanded = if arguments.is_empty() {
        expand(function)
    } else {
        Err("`#[lockdep::test]` has no arguments")
    };
    expanded.unwrap_or_else(|why| tokens(&format!("::core::compile_error!({why:?});")))
}

fn expand(function: TokenStream) -> Result<TokenStream, &'static str> {
    let mut head: Vec<TokenTree> = function.into_iter().collect();
    let body = match head.pop() {
        Some(TokenTree::Group(body)) if body.delimiter() == Delimiter::Brace => body,
        _ => return Err("`#[lockdep::test]` stands before a function"),
    };
    let has = |word: &str| {
        let is_word =
            |token: &TokenTree| matches!(token, TokenTree::Ident(name) if name.to_string() == word);
        head.iter().any(is_word)
    };
    if !has("fn") {
        return Err("`#[lockdep::test]` stands before a function");
    }
    if has("async") {
        return Err("`#[lockdep::test]` runs no futures: run them in a plain function");
    }
    let mut closure = tokens("||");
    closure.extend([TokenTree::from(body)]);
    let mut call = tokens(CHECK);
    call.extend([TokenTree::from(Group::new(Delimiter::Parenthesis, closure))]);
    let mut test = tokens(TEST);
    test.extend(head);
    test.extend([TokenTree::from(Group::new(Delimiter::Brace, call))]);
    Ok(test)
}

/// Tokens of our own writing.
fn tokens(text: &str) -> TokenStream {
    text.parse().expect("it is Rust")
}
