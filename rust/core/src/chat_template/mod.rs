//! Chat templates: minijinja, equal to transformers' `apply_chat_template`.
//!
//! A template cannot reach files, the network or other templates, and has limits on steps, nesting and output.
//!
//! Where minijinja's language differs from jinja2's, `dialect` rewrites the template. What remains different (none of
//! it in the constructs of the common model families, as `tests/native/chat_families.py` has them):
//! - a chain of comparisons (`a < b < c`) and the filters `sort`, `min`, `max` and `unique` order and compare values of
//!   different types instead of failing; `abs` takes no bool; `select` and `map` refuse a falsy number instead of
//!   giving an empty list; `truncate` takes strings only; `odd` and `even` take no text; text times a whole float is
//!   text;
//! - macros have no `varargs` and `kwargs`, a default of one argument cannot name another, `m.arguments` is a list;
//! - `set ns._name` is not refused, `dict` takes no list of pairs and has no `fromkeys`;
//! - views of dicts, ranges, functions, methods and generators print differently, and views can be indexed; a method
//!   that is read into a variable cannot be called;
//! - `%r` is no conversion and `%d` takes no fraction; an operator behind a test without an argument
//!   (`x is number - 1`) is a syntax error;
//! - values that are stored are nested at most 200 levels deep, a namespace holds no namespace, and a tag has at most
//!   2,000 tokens;
//! - the filters `filesizeformat`, `random`, `urlencode`, `urlize`, `wordwrap` and `xmlattr` and the function `lipsum`
//!   are unknown.

mod continuation;
mod dialect;
mod environment;
mod filters;
mod methods;
mod provenance;
mod python;

use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
use environment::Raised;
use minijinja::{Environment, ErrorKind, Value};
use provenance::{Depth, Disguise, Watch};
use serde_json::{Map, Value as Json};
use std::error::Error as _;
use std::ops::Range;

/// Longest prompt that a template may write, in bytes: above any request that the service accepts.
const MAX_OUTPUT: usize = 32 << 20;

/// Names that the renderer fills itself.
const RESERVED: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];

/// A conversation as JSON texts, in the shape that `apply_chat_template` takes.
#[derive(Debug, Clone, Copy, Default)]
pub struct ChatInput<'a> {
    /// A list of messages, each an object.
    pub messages_json: &'a str,
    /// A list of objects; none for a conversation without tools.
    pub tools_json: Option<&'a str>,
    /// A list of objects.
    pub documents_json: Option<&'a str>,
    /// An object of further template variables; they win over the special tokens.
    pub variables_json: Option<&'a str>,
    /// Append the marker that opens the assistant's turn.
    pub add_generation_prompt: bool,
    /// Leave the last message open. Not together with `add_generation_prompt`.
    pub continue_final_message: bool,
    /// What `strftime_now` sees, in seconds since the epoch; none is the clock.
    pub now: Option<f64>,
}

/// What a chat template produced, with the places of the caller's text marked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderedChat {
    text: String,
    protected: Vec<Range<usize>>,
}

impl RenderedChat {
    /// The prompt.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Byte ranges of the text that the caller wrote and that a control token must not touch: sorted, not overlapping.
    #[must_use]
    pub fn protected(&self) -> &[Range<usize>] {
        &self.protected
    }
}

/// A compiled chat template. Immutable; share it with `Arc`.
pub struct ChatTemplate {
    env: Environment<'static>,
    source: String,
    special_tokens: Vec<(String, String)>,
    watch: Watch,
}

/// What the caller gave, parsed.
struct Conversation {
    messages: Vec<Json>,
    tools: Json,
    documents: Json,
    variables: Map<String, Json>,
}

impl ChatTemplate {
    /// Compiles a template. `special_tokens` are its variables, such as `bos_token`; the control tokens that a caller's
    /// text must not become are the tokenizer's.
    ///
    /// # Errors
    /// [`Error::Template`] for a template with a syntax error.
    pub fn new(source: &str, tokenizer: &Tokenizer, special_tokens: Vec<(String, String)>) -> Result<Self> {
        let env = environment::compile(source).map_err(|error| template_error(&error))?;
        let watch = Watch::new(source, &tokenizer.special_token_names());
        Ok(Self { env, source: source.to_owned(), special_tokens, watch })
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// [`Error::Template`] for input of the wrong shape, with the template's own text where it refuses the input, and
    /// when it exceeds its limits.
    pub fn render(&self, input: &ChatInput<'_>) -> Result<RenderedChat> {
        let conversation = Conversation::parse(input)?;
        let now = environment::local_time(input.now).ok_or_else(|| refuse("now is out of range"))?;
        let final_text = match input.continue_final_message {
            true if input.add_generation_prompt => {
                return Err(refuse("continue_final_message and add_generation_prompt are not compatible."));
            }
            true => Some(continuation::final_text(&conversation.messages, &self.source).map_err(refuse)?),
            false => None,
        };
        let render = |mut conversation: Conversation| {
            if final_text.is_some() {
                continuation::mark(&mut conversation.messages);
            }
            let context = self.context(conversation, input.add_generation_prompt, environment::strftime_now(now));
            self.run(context)
        };
        let mut text = render(conversation.disguised(Json::clone))?;
        let mut protected =
            if self.watch.matters(&text) { self.protected(&text, &conversation, render) } else { vec![] };
        if let Some(final_text) = final_text {
            text.truncate(continuation::kept_length(&text, &final_text).map_err(refuse)?);
            protected.retain(|range| range.start < text.len());
        }
        Ok(RenderedChat { text, protected })
    }

    /// Which bytes of the rendered text are the caller's: see [`provenance`].
    fn protected(
        &self,
        text: &str,
        conversation: &Conversation,
        render: impl Fn(Conversation) -> Result<String>,
    ) -> Vec<Range<usize>> {
        let variables = Json::Object(conversation.variables.clone());
        let messages = Json::Array(conversation.messages.clone());
        let inputs = [&messages, &conversation.tools, &conversation.documents, &variables];
        for depth in [Depth::Characters, Depth::Tokens] {
            let mut disguise = Disguise::new(&self.watch, depth, &inputs);
            let disguised = conversation.disguised(|value| disguise.value(value));
            let revealed = render(disguised).ok().and_then(|shown| disguise.reveal(&shown, text));
            if let Some(protected) = revealed {
                return protected;
            }
        }
        // The template reads control tokens in its input: nothing that the input names is a control token any more.
        self.watch.all_that_occur(text, &inputs)
    }

    fn context(&self, conversation: Conversation, add_generation_prompt: bool, strftime_now: Value) -> Value {
        let text = |text: &str| Value::from(text);
        let mut variables: Vec<(Value, Value)> =
            self.special_tokens.iter().map(|(name, token)| (text(name), text(token))).collect();
        variables.extend(conversation.variables.into_iter().map(|(name, value)| (Value::from(name), to_value(value))));
        variables.extend([
            (text("strftime_now"), strftime_now),
            (text("messages"), to_value(Json::Array(conversation.messages))),
            (text("tools"), to_value(conversation.tools)),
            (text("documents"), to_value(conversation.documents)),
            (text("add_generation_prompt"), Value::from(add_generation_prompt)),
        ]);
        Value::from_pairs(variables)
    }

    fn run(&self, context: Value) -> Result<String> {
        let template = environment::template(&self.env).map_err(|error| template_error(&error))?;
        let mut output = Bounded(Vec::new());
        template.render_captured_to(context, &mut output).map_err(|error| template_error(&error))?;
        String::from_utf8(output.0).map_err(|_| refuse("the chat template wrote text that is not UTF-8"))
    }
}

impl Conversation {
    fn parse(input: &ChatInput<'_>) -> Result<Self> {
        let Json::Array(mut messages) = parse("messages", input.messages_json)? else {
            return Err(refuse("messages: must be a list"));
        };
        if messages.is_empty() {
            return Err(refuse("messages: must not be empty"));
        }
        for (index, message) in messages.iter_mut().enumerate() {
            let Json::Object(message) = message else {
                return Err(refuse(format!("messages[{index}]: must be an object")));
            };
            // As apply_chat_template does: many templates handle a missing key, but not None.
            message.retain(|_, value| !value.is_null());
            continuation::alias_reasoning(message);
        }
        let variables = match input.variables_json.map(|json| parse("variables", json)).transpose()? {
            None | Some(Json::Null) => Map::new(),
            Some(Json::Object(variables)) => variables,
            Some(_) => return Err(refuse("variables: must be an object")),
        };
        if let Some(name) = RESERVED.iter().find(|name| variables.contains_key(**name)) {
            return Err(refuse(format!("variables: {name} is set by the service")));
        }
        Ok(Self {
            messages,
            tools: objects("tools", input.tools_json)?,
            documents: objects("documents", input.documents_json)?,
            variables,
        })
    }

    fn disguised(&self, mut disguise: impl FnMut(&Json) -> Json) -> Self {
        Self {
            messages: self.messages.iter().map(&mut disguise).collect(),
            tools: disguise(&self.tools),
            documents: disguise(&self.documents),
            variables: self.variables.iter().map(|(name, value)| (name.clone(), disguise(value))).collect(),
        }
    }
}

fn parse(field: &str, json: &str) -> Result<Json> {
    serde_json::from_str(json).map_err(|error| refuse(format!("{field}: not JSON: {error}")))
}

/// A list of objects, or none.
fn objects(field: &str, json: Option<&str>) -> Result<Json> {
    let Some(json) = json else { return Ok(Json::Null) };
    let value = parse(field, json)?;
    match &value {
        Json::Null => Ok(value),
        Json::Array(items) if items.iter().all(Json::is_object) => Ok(value),
        _ => Err(refuse(format!("{field}: must be a list of objects"))),
    }
}

fn to_value(json: Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => Value::from(integer),
            (None, Some(integer)) => Value::from(integer),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text),
        Json::Array(items) => Value::from(items.into_iter().map(to_value).collect::<Vec<_>>()),
        Json::Object(items) => {
            Value::from_pairs(items.into_iter().map(|(key, item)| (Value::from(key), to_value(item))))
        }
    }
}

/// A writer that fails beyond the limit.
struct Bounded(Vec<u8>);

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn refuse(text: impl Into<String>) -> Error {
    Error::Template(text.into())
}

/// The template's own words where it raised, otherwise the line and what failed there.
fn template_error(error: &minijinja::Error) -> Error {
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(Raised(message)) = inner.downcast_ref() {
            return Error::Template(message.clone());
        }
        source = inner.source();
    }
    let line = error.line().map(|line| format!(" in line {line}")).unwrap_or_default();
    let what = match error.kind() {
        ErrorKind::OutOfFuel => format!("it used up its {} steps", environment::FUEL),
        ErrorKind::WriteFailure => format!("its output exceeds {MAX_OUTPUT} bytes"),
        kind => match error.detail() {
            // Details may quote values: enough to see which, not a whole document.
            Some(detail) => format!("{kind}: {}", detail.chars().take(200).collect::<String>()),
            None => kind.to_string(),
        },
    };
    Error::Template(format!("the chat template fails{line}: {what}"))
}
