//! A conversation as the text that DeepSeek-V4 continues.
//!
//! The release has no template language: a prompt is the beginning-of-sequence token, the system text, and turns that
//! open with `<｜User｜>` or `<｜Assistant｜>`. Behind the last `<｜Assistant｜>` stands `<think>` where the model may
//! think and `</think>` where it may not. What it thought in earlier turns is dropped, unless there are tools. The
//! texts that markers are made of are tokens of their own, so the tokenizer finds them in the text.
//!
//! Tool calls are written in DSML, `<｜DSML｜invoke name="...">` with a parameter a line; results stand inside user
//! turns. The sentences that explain this to the model under `## Tools` are ours, not the release's: give another
//! block as part of the system text where the exact words matter.

use std::fmt::Write;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// What was said so far, and with which tools.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conversation {
    /// Turns, the oldest first.
    pub messages: Vec<Message>,
    /// What the model may call.
    #[serde(default)]
    pub tools: Vec<Tool>,
}

/// One turn, or a part of one.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    #[serde(default)]
    pub content: Option<String>,
    /// What the assistant thought before it.
    #[serde(default)]
    pub reasoning_content: Option<String>,
    /// What the assistant called after it.
    #[serde(default)]
    pub tool_calls: Vec<ToolCall>,
    /// The call that a tool answers; answers stand in the order of the calls, so the prompt has no place for it.
    #[serde(default)]
    pub tool_call_id: Option<String>,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// What holds for the whole conversation; first or not at all.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
    /// What a tool answered.
    Tool,
}

/// A tool as chat interfaces list it.
#[derive(Clone, Debug, Deserialize)]
pub struct Tool {
    /// Name, description and parameters, as they are shown to the model.
    pub function: Box<RawValue>,
}

/// A call that the assistant made.
#[derive(Clone, Debug, Deserialize)]
pub struct ToolCall {
    /// What was called.
    pub function: Call,
}

/// A name with its arguments.
#[derive(Clone, Debug, Deserialize)]
pub struct Call {
    /// The tool's name.
    pub name: String,
    /// A JSON object, written as a string.
    pub arguments: String,
}

/// Whether the model thinks before it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It answers at once.
    Chat,
    /// It thinks first.
    Thinking,
}

/// A conversation that cannot be continued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PromptError {
    /// Nothing to continue, or the model spoke last.
    #[error("expected a conversation that ends with the user or a tool, found {found}")]
    End {
        /// What is there.
        found: &'static str,
    },
    /// System text in the middle.
    #[error("expected system text in the first message only, found it in message {message_idx}")]
    LateSystem {
        /// Which, from 0.
        message_idx: usize,
    },
    /// Nothing is said.
    #[error("expected content in message {message_idx}, found none")]
    NoContent {
        /// Which, from 0.
        message_idx: usize,
    },
    /// An answer to nothing.
    #[error("expected a tool's answer behind the assistant's calls, found it in message {message_idx}")]
    NotCalled {
        /// Which, from 0.
        message_idx: usize,
    },
    /// Arguments that are no object.
    #[error("expected a JSON object as the arguments of `{name}`, found `{found}`")]
    Arguments {
        /// The tool.
        name: String,
        /// What is there.
        found: String,
    },
}

impl Conversation {
    /// One question, with or without system text.
    pub fn question(system: Option<&str>, user: &str) -> Self {
        let said = |role, content: &str| Message {
            role,
            content: Some(content.to_string()),
            reasoning_content: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
        };
        let system = system.map(|text| said(Role::System, text));
        Self { messages: system.into_iter().chain([said(Role::User, user)]).collect(), tools: Vec::new() }
    }

    /// The text that the model continues.
    ///
    /// # Errors
    /// [`PromptError`] if it is not the model's turn, or a message makes no sense where it stands.
    pub fn encode(&self, mode: Mode) -> Result<String, PromptError> {
        let mut text = BEGIN.to_string();
        let mut previous = None;
        let last_user = self.messages.iter().rposition(|message| message.role == Role::User);
        for (message_idx, message) in self.messages.iter().enumerate() {
            let content = || message.content.as_deref().ok_or(PromptError::NoContent { message_idx });
            match message.role {
                Role::System if message_idx > 0 => return Err(PromptError::LateSystem { message_idx }),
                Role::System => text.push_str(content()?),
                Role::User => text.push_str(&format!("{}{}", user_mark(previous), content()?)),
                Role::Tool => {
                    let is_called = message_idx > 0 && !self.messages[message_idx - 1].tool_calls.is_empty();
                    if !is_called && previous != Some(Role::Tool) {
                        return Err(PromptError::NotCalled { message_idx });
                    }
                    text.push_str(&format!("{}<tool_result>{}</tool_result>", user_mark(previous), content()?));
                }
                Role::Assistant => {
                    let is_recent = last_user.is_none_or(|last_user| message_idx > last_user);
                    let keeps_reasoning = mode == Mode::Thinking && (is_recent || !self.tools.is_empty());
                    text.push_str(&assistant_turn(message, keeps_reasoning)?);
                }
            }
            if message_idx == 0 && !self.tools.is_empty() {
                self.insert_tools(&mut text, message.role);
            }
            previous = Some(message.role);
        }
        match previous {
            None => Err(PromptError::End { found: "no message" }),
            Some(Role::System) => Err(PromptError::End { found: "only system text" }),
            Some(Role::Assistant) => Err(PromptError::End { found: "the assistant's turn last" }),
            Some(Role::User | Role::Tool) => {
                text.push_str(ASSISTANT);
                text.push_str(if mode == Mode::Thinking { THINK } else { END_OF_THOUGHT });
                Ok(text)
            }
        }
    }

    /// Puts the list of tools behind the system text: before anything that a first message of another role has said.
    fn insert_tools(&self, text: &mut String, first: Role) {
        let at = if first == Role::System { text.len() } else { BEGIN.len() };
        let schemas: Vec<&str> = self.tools.iter().map(|tool| tool.function.get()).collect();
        let gap = if first == Role::System { "\n\n" } else { "" };
        text.insert_str(at, &format!("{gap}{TOOLS_HEAD}\n\n{}\n", schemas.join("\n")));
    }
}

/// What opens a user's turn, or goes on with it: answers of tools and what the user adds are one turn.
fn user_mark(previous: Option<Role>) -> &'static str {
    match previous {
        Some(Role::Tool | Role::User) => "\n\n",
        _ => USER,
    }
}

/// What the model said before, with or without what it thought.
fn assistant_turn(message: &Message, keeps_reasoning: bool) -> Result<String, PromptError> {
    let mut text = ASSISTANT.to_string();
    if let Some(reasoning) = message.reasoning_content.as_deref().filter(|_| keeps_reasoning) {
        let _ = write!(text, "{THINK}{reasoning}");
    }
    let _ = write!(text, "{END_OF_THOUGHT}{}", message.content.as_deref().unwrap_or(""));
    if !message.tool_calls.is_empty() {
        let _ = write!(text, "\n\n<{DSML}tool_calls>\n");
        for call in &message.tool_calls {
            invoke(&call.function, &mut text)?;
        }
        let _ = write!(text, "</{DSML}tool_calls>");
    }
    text.push_str(END);
    Ok(text)
}

/// One call: texts as they are, everything else as JSON.
fn invoke(call: &Call, text: &mut String) -> Result<(), PromptError> {
    let Arguments(arguments) = serde_json::from_str(&call.arguments)
        .map_err(|_| PromptError::Arguments { name: call.name.clone(), found: call.arguments.clone() })?;
    let _ = writeln!(text, "<{DSML}invoke name=\"{}\">", call.name);
    for (name, value) in arguments {
        let string = serde_json::from_str::<String>(value.get());
        let (is_string, value) = (string.is_ok(), string.unwrap_or_else(|_| value.get().to_string()));
        let _ = writeln!(text, "<{DSML}parameter name=\"{name}\" string=\"{is_string}\">{value}</{DSML}parameter>");
    }
    let _ = writeln!(text, "</{DSML}invoke>");
    Ok(())
}

/// A JSON object in the order in which it was written.
struct Arguments(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Arguments {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Arguments;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Arguments, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Arguments(entries))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

const BEGIN: &str = "<｜begin▁of▁sentence｜>";
const END: &str = "<｜end▁of▁sentence｜>";
const USER: &str = "<｜User｜>";
const ASSISTANT: &str = "<｜Assistant｜>";
const THINK: &str = "<think>";
const END_OF_THOUGHT: &str = "</think>";
const DSML: &str = "｜DSML｜";

const TOOLS_HEAD: &str = "\
## Tools

The functions below may be called. A call is written like this, one `invoke` for each:

<｜DSML｜tool_calls>
<｜DSML｜invoke name=\"$TOOL_NAME\">
<｜DSML｜parameter name=\"$PARAMETER_NAME\" string=\"true|false\">$PARAMETER_VALUE</｜DSML｜parameter>
</｜DSML｜invoke>
</｜DSML｜tool_calls>

A text is written as it is, with string=\"true\"; every other value as JSON, with string=\"false\".

Each line describes one function:";

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(json: &str, mode: Mode) -> Result<String, PromptError> {
        serde_json::from_str::<Conversation>(json).unwrap().encode(mode)
    }

    #[test]
    fn a_question_opens_the_assistants_turn() {
        let chat = Conversation::question(Some("Be brief."), "Hi").encode(Mode::Chat).unwrap();
        assert_eq!(chat, "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hi<｜Assistant｜></think>");
        let thinking = Conversation::question(None, "Hi").encode(Mode::Thinking).unwrap();
        assert_eq!(thinking, "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜><think>");
    }

    #[test]
    fn earlier_reasoning_is_dropped() {
        let turns = r#"{"messages": [{"role": "user", "content": "1+1?"},
            {"role": "assistant", "reasoning_content": "easy", "content": "2"}, {"role": "user", "content": "2+2?"}]}"#;
        let expected = "<｜begin▁of▁sentence｜><｜User｜>1+1?<｜Assistant｜></think>2<｜end▁of▁sentence｜>\
            <｜User｜>2+2?<｜Assistant｜>";
        assert_eq!(encoded(turns, Mode::Thinking).unwrap(), format!("{expected}<think>"));
        assert_eq!(encoded(turns, Mode::Chat).unwrap(), format!("{expected}</think>"));
    }

    #[test]
    fn with_tools_reasoning_stays_and_calls_are_written_in_dsml() {
        let turns = r#"{"tools": [{"type": "function", "function": {"name": "weather", "description": "of a town"}}],
            "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Rain?"},
            {"role": "assistant", "reasoning_content": "ask", "content": "", "tool_calls": [{"function":
                {"name": "weather", "arguments": "{\"town\": \"Ulm\", \"days\": 2, \"at\": [1, 2]}"}}]},
            {"role": "tool", "content": "dry"}, {"role": "tool", "content": "cold"}]}"#;
        let text = encoded(turns, Mode::Thinking).unwrap();
        let (tools, rest) = text.split_once("<｜User｜>").unwrap();
        assert!(tools.starts_with("<｜begin▁of▁sentence｜>S\n\n## Tools\n\n"), "{tools}");
        assert!(tools.ends_with("\n\n{\"name\": \"weather\", \"description\": \"of a town\"}\n"), "{tools}");
        let expected = "Rain?<｜Assistant｜><think>ask</think>\n\n<｜DSML｜tool_calls>\n\
            <｜DSML｜invoke name=\"weather\">\n\
            <｜DSML｜parameter name=\"town\" string=\"true\">Ulm</｜DSML｜parameter>\n\
            <｜DSML｜parameter name=\"days\" string=\"false\">2</｜DSML｜parameter>\n\
            <｜DSML｜parameter name=\"at\" string=\"false\">[1, 2]</｜DSML｜parameter>\n\
            </｜DSML｜invoke>\n</｜DSML｜tool_calls><｜end▁of▁sentence｜>\
            <｜User｜><tool_result>dry</tool_result>\n\n<tool_result>cold</tool_result><｜Assistant｜><think>";
        assert_eq!(rest, expected);
    }

    #[test]
    fn tools_stand_before_a_first_question_too() {
        let turns = r#"{"tools": [{"function": {"name": "a"}}], "messages": [{"role": "user", "content": "Q"}]}"#;
        let text = encoded(turns, Mode::Chat).unwrap();
        assert!(text.starts_with("<｜begin▁of▁sentence｜>## Tools\n\n"), "{text}");
        assert!(text.ends_with("{\"name\": \"a\"}\n<｜User｜>Q<｜Assistant｜></think>"), "{text}");
    }

    #[test]
    fn what_cannot_be_continued_is_refused() {
        let bad = [
            (r#"{"messages": []}"#, "expected a conversation that ends with the user or a tool, found no message"),
            (r#"{"messages": [{"role": "system", "content": "S"}]}"#, "found only system text"),
            (
                r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#,
                "found the assistant's turn last",
            ),
            (
                r#"{"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}"#,
                "expected system text in the first message only, found it in message 1",
            ),
            (r#"{"messages": [{"role": "user"}]}"#, "expected content in message 0, found none"),
            (
                r#"{"messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]}"#,
                "expected a tool's answer behind the assistant's calls, found it in message 1",
            ),
            (
                r#"{"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]},
                    {"role": "user", "content": "a"}]}"#,
                "expected a JSON object as the arguments of `f`, found `[]`",
            ),
        ];
        for (json, sentence) in bad {
            let error = encoded(json, Mode::Chat).unwrap_err().to_string();
            assert!(error.contains(sentence), "{error}");
        }
    }
}
