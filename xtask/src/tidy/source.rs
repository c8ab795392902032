//! A Rust source file, taken apart: tokens at every depth, and for each line its code and comment.
//!
//! Only the lexer of `proc-macro2` is used, no parser: what stands inside a macro is seen like
//! everything else.

use proc_macro2::{Delimiter, Ident, Spacing, TokenStream, TokenTree};
use std::ops::Range;

/// The braces of an item come within this many tokens of its first attribute.
const ITEM_TOKENS_MAX: usize = 64;

/// One line, its code and its comments apart.
#[derive(Default)]
pub(crate) struct Line {
    pub(crate) code: String,
    pub(crate) comment: String,
}

/// A Rust source file.
pub(crate) struct Source {
    pub(crate) path: String,
    pub(crate) text: String,
    pub(crate) lines: Vec<Line>,
    pub(crate) tokens: TokenStream,
}

/// A path as it is used, braces of a `use` expanded: `use std::{fs, io}` gives two.
pub(crate) struct PathUse {
    pub(crate) segments: Vec<String>,
    /// The line, from zero.
    pub(crate) line: usize,
    pub(crate) in_use: bool,
}

impl Source {
    /// Takes `text` apart. The error is the line (from zero) that does not lex.
    pub(crate) fn parse(path: &str, text: &str) -> Result<Self, usize> {
        let tokens: TokenStream = text
            .parse()
            .map_err(|error: proc_macro2::LexError| error.span().start().line - 1)?;
        let mut is_code = vec![false; text.len()];
        mark_code(&tokens, text, &mut is_code);
        let lines = split(text, &is_code);
        Ok(Self {
            path: path.to_owned(),
            text: text.to_owned(),
            lines,
            tokens,
        })
    }

    /// Calls `visit` with the tokens of every depth: the file, then each group.
    pub(crate) fn each_level(&self, visit: &mut dyn FnMut(&[TokenTree])) {
        each_level(self.tokens.clone(), visit);
    }

    /// Every path in the file.
    pub(crate) fn paths(&self) -> Vec<PathUse> {
        let mut paths = Vec::new();
        collect_paths(self.tokens.clone(), &mut paths);
        paths
    }

    /// The lines (from zero) of modules that are compiled for tests only.
    pub(crate) fn test_modules(&self) -> Vec<Range<usize>> {
        let mut modules = Vec::new();
        self.each_level(&mut |tokens| {
            for at in 0..tokens.len().saturating_sub(1) {
                let is_cfg = is_punct(tokens.get(at), '#')
                    && tokens[at + 1].to_string().replace(' ', "") == "[cfg(test)]";
                let rest = tokens[at..].iter().skip(2);
                let module = rest.take_while(|token| !is_punct(Some(token), ';'));
                for token in module.take(if is_cfg { ITEM_TOKENS_MAX } else { 0 }) {
                    if let TokenTree::Group(body) = token
                        && body.delimiter() == Delimiter::Brace
                    {
                        modules.push(line_of(&tokens[at])..body.span_close().end().line);
                        break;
                    }
                }
            }
        });
        modules
    }

    /// The comments that belong to the statement around `line`: on the line, above it, and above
    /// the first line of the statement. One text a line of comment.
    pub(crate) fn comments_of(&self, line: usize) -> Vec<&str> {
        const STATEMENT_LINES_MAX: usize = 8;
        let mut comments = Vec::new();
        let mut statement_lines = 0;
        let mut block_found = false;
        if !self.lines[line].comment.is_empty() {
            comments.push(self.lines[line].comment.as_str());
        }
        for above in self.lines[..line].iter().rev() {
            let code = above.code.trim();
            if code.is_empty() {
                if above.comment.is_empty() {
                    break;
                }
                comments.push(&above.comment);
                block_found = true;
            } else if !code.starts_with("#[") {
                statement_lines += 1;
                let ended = code.ends_with([';', '{', '}']) || code.contains("unsafe");
                if block_found || ended || statement_lines > STATEMENT_LINES_MAX {
                    break;
                }
                if !above.comment.is_empty() {
                    comments.push(&above.comment);
                }
            }
        }
        comments
    }
}

/// Whether the token is this identifier.
pub(crate) fn is_ident(token: Option<&TokenTree>, name: &str) -> bool {
    matches!(token, Some(TokenTree::Ident(ident)) if ident == name)
}

/// Whether the token is this punctuation mark.
pub(crate) fn is_punct(token: Option<&TokenTree>, mark: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == mark)
}

/// The line of a token, from zero.
pub(crate) fn line_of(token: &TokenTree) -> usize {
    token.span().start().line - 1
}

/// The macro that is called at `at`, and its arguments.
pub(crate) fn macro_call(tokens: &[TokenTree], at: usize) -> Option<(&Ident, TokenStream)> {
    match (&tokens[at], tokens.get(at + 1), tokens.get(at + 2)) {
        (TokenTree::Ident(name), Some(TokenTree::Punct(bang)), Some(TokenTree::Group(group)))
            if bang.as_char() == '!' && bang.spacing() == Spacing::Alone =>
        {
            Some((name, group.stream()))
        }
        _ => None,
    }
}

/// The string in a literal token, without its quotes.
pub(crate) fn string_of(token: &TokenTree) -> Option<String> {
    let TokenTree::Literal(literal) = token else {
        return None;
    };
    let text = literal.to_string();
    Some(text.strip_prefix('"')?.strip_suffix('"')?.to_owned())
}

fn each_level(tokens: TokenStream, visit: &mut dyn FnMut(&[TokenTree])) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    visit(&tokens);
    for token in tokens {
        if let TokenTree::Group(group) = token {
            each_level(group.stream(), visit);
        }
    }
}

/// Marks the bytes that tokens cover. A documentation comment is a token to the lexer and a
/// comment to us.
fn mark_code(tokens: &TokenStream, text: &str, is_code: &mut [bool]) {
    for token in tokens.clone() {
        let range = token.span().byte_range();
        if text[range.clone()].starts_with("//") || text[range.clone()].starts_with("/*") {
            continue;
        }
        if let TokenTree::Group(group) = &token {
            is_code[group.span_open().byte_range()].fill(true);
            is_code[group.span_close().byte_range()].fill(true);
            mark_code(&group.stream(), text, is_code);
        } else {
            is_code[range].fill(true);
        }
    }
}

fn split(text: &str, is_code: &[bool]) -> Vec<Line> {
    let mut lines = vec![Line::default()];
    for (at, c) in text.char_indices() {
        let line = lines.last_mut().expect("it begins with one line");
        if c == '\n' {
            lines.push(Line::default());
        } else if is_code[at] {
            line.code.push(c);
        } else if c.is_whitespace() {
            line.code.push(c);
            if !line.comment.is_empty() {
                line.comment.push(c);
            }
        } else {
            line.comment.push(c);
        }
    }
    lines
}

/// Whether `::` stands at `at`.
fn is_colons(tokens: &[TokenTree], at: usize) -> bool {
    is_punct(tokens.get(at), ':') && is_punct(tokens.get(at + 1), ':')
}

/// Collects at every depth, but for the braces of a `use`: [`expand`] has opened those.
fn collect_paths(tokens: TokenStream, paths: &mut Vec<PathUse>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut in_use = false;
    for (at, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Ident(ident) if ident == "use" => {
                in_use = !is_punct(tokens.get(at + 1), '<');
            }
            TokenTree::Ident(_) if !continues_path(&tokens, at) => {
                expand(&tokens[at..], &[], in_use, paths);
            }
            TokenTree::Group(group) if !in_use => collect_paths(group.stream(), paths),
            TokenTree::Punct(punct) if punct.as_char() == ';' => in_use = false,
            _ => {}
        }
    }
}

/// Whether the identifier at `at` is a later segment of a path. In `::std` it is the first one.
fn continues_path(tokens: &[TokenTree], at: usize) -> bool {
    if at < 3 || !is_colons(tokens, at - 2) {
        return false;
    }
    match &tokens[at - 3] {
        TokenTree::Ident(before) => before != "use" && before != "return",
        TokenTree::Punct(punct) => punct.as_char() == '>',
        TokenTree::Group(_) | TokenTree::Literal(_) => false,
    }
}

/// Adds the path (of a `use`: the paths) at the start of `tokens`, after `prefix`.
fn expand(tokens: &[TokenTree], prefix: &[String], in_use: bool, paths: &mut Vec<PathUse>) {
    let mut segments = prefix.to_vec();
    let mut at = 0;
    let Some(first) = tokens.first() else { return };
    let line = line_of(first);
    while let Some(token) = tokens.get(at) {
        match token {
            TokenTree::Ident(ident) => {
                let name = ident.to_string();
                segments.push(name.strip_prefix("r#").unwrap_or(&name).to_owned());
            }
            TokenTree::Punct(star) if star.as_char() == '*' && in_use => segments.push("*".into()),
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace && in_use => {
                let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                for branch in inner.split(|token| is_punct(Some(token), ',')) {
                    expand(branch, &segments, in_use, paths);
                }
                return;
            }
            _ => break,
        }
        if !is_colons(tokens, at + 1) {
            break;
        }
        at += 3;
    }
    if segments.last().is_some_and(|last| last == "self") && segments.len() > 1 {
        segments.pop();
    }
    paths.push(PathUse {
        segments,
        line,
        in_use,
    });
}
