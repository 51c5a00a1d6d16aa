//! Functions of a formatted text, found by their indentation: the closing brace stands below the first word.

/// One function: where it begins, its signature, how long it is.
pub struct Function {
    /// Line of its first word, from 1.
    pub line: usize,
    /// From its first word to the brace that opens the body.
    pub signature: String,
    /// Lines from the first word to the closing brace.
    pub lines: usize,
}

impl Function {
    /// The word behind `fn`.
    pub fn name(&self) -> &str {
        self.behind_fn().split(|c: char| !is_name(c)).next().unwrap_or("")
    }

    /// How many parameters a Rust function takes, `self` not counted.
    pub fn parameters(&self) -> usize {
        let behind = self.behind_fn().trim_start_matches(is_name);
        let list = match behind.starts_with('<') {
            true => &behind[inside(behind).len() + 2..],
            false => behind,
        };
        let list = inside(list);
        let mut parts = Vec::from([String::new()]);
        let mut depth = 0;
        let mut previous = ' ';
        for c in list.chars() {
            depth += change(c, previous);
            match c {
                ',' if depth == 0 => parts.push(String::new()),
                _ => parts[..].last_mut().unwrap().push(c),
            }
            previous = c;
        }
        let is_self = |part: &str| part.split_whitespace().last().is_some_and(|word| ["self", "&self"].contains(&word));
        parts.iter().filter(|part| !part.trim().is_empty() && !is_self(part)).count()
    }

    fn behind_fn(&self) -> &str {
        self.signature.split_once("fn ").map_or("", |(_, behind)| behind)
    }
}

/// The functions of `text` whose first line, without its indent, is one by `is_start`.
pub fn functions(text: &str, is_start: fn(&str) -> bool) -> Vec<Function> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (begin, line) in lines.iter().enumerate().filter(|(_, line)| is_start(line.trim_start())) {
        let indent = &line[..line.len() - line.trim_start().len()];
        let Some(body) = (begin..lines.len()).find(|&idx| lines[idx].ends_with(['{', ';', '}'])) else { continue };
        let closes = |idx: &usize| lines[*idx].strip_prefix(indent).is_some_and(|rest| rest.starts_with('}'));
        let end = if lines[body].ends_with('{') { (body + 1..lines.len()).find(closes) } else { Some(body) };
        let signature = lines[begin..=body].join("\n");
        found.push(Function { line: begin + 1, signature, lines: end.unwrap_or(body) - begin + 1 });
    }
    found
}

/// Whether a line begins a function of Rust.
pub fn is_rust(line: &str) -> bool {
    let mut line = line;
    if line.starts_with("pub(") {
        line = line.split_once(") ").map_or(line, |(_, rest)| rest);
    }
    for word in ["pub ", "const ", "unsafe ", "extern \"C\" "] {
        line = line.strip_prefix(word).unwrap_or(line);
    }
    line.starts_with("fn ")
}

/// Whether a line begins a function of CUDA, or the attributes in front of it.
pub fn is_cuda(line: &str) -> bool {
    ["__device__ ", "__host__ ", "static __device__ ", "extern \"C\" __global__ "]
        .iter()
        .any(|word| line.starts_with(word))
}

/// What stands between the bracket that opens `text` and the one that closes it.
fn inside(text: &str) -> &str {
    let mut depth = 0;
    let mut previous = ' ';
    for (at, c) in text.char_indices() {
        depth += change(c, previous);
        if depth == 0 {
            return &text[1..at];
        }
        previous = c;
    }
    ""
}

/// How `c` changes the depth of brackets; `->` closes nothing.
fn change(c: char, previous: char) -> i32 {
    match c {
        '(' | '[' | '{' | '<' => 1,
        ')' | ']' | '}' => -1,
        '>' if previous != '-' => -1,
        _ => 0,
    }
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[test]
fn functions_are_found_and_counted() {
    let text = "\
impl A {
    pub fn one(&self, a: u32, f: impl Fn(u8, u8) -> u8) -> Option<u8> {
        None
    }
}
fn two<F: Fn(u8, u8) -> u8>(
    [a, b]: [u8; 2],
    c: BTreeMap<u8, (u8, u8)>,
) {
}
pub(super) fn three(mut self) {}
";
    let found = functions(text, is_rust);
    let found: Vec<_> = found.iter().map(|f| (f.name(), f.line, f.lines, f.parameters())).collect();
    assert_eq!(found, [("one", 2, 3, 2), ("two", 6, 5, 2), ("three", 11, 1, 0)]);
}
