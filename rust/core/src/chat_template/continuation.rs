//! `continue_final_message` of transformers 5.23: the prompt ends inside the last message.

use super::methods::trim;
use serde_json::{Map, Value as Json};

/// Marks where the last message ends; from transformers' `render_jinja_template`.
const TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// The text that the answer continues: the last text block, or the content itself.
///
/// # Errors
/// Why the last message cannot be continued.
pub(super) fn final_text(messages: &[Json], source: &str) -> Result<String, String> {
    let content = messages.last().and_then(|message| message.get("content")).filter(|content| !content.is_null());
    let Some(content) = content else {
        return Err(r#"continue_final_message is set but the final message has no "content" to continue!"#.to_owned());
    };
    if !source.contains("content") {
        return Err(
            r#"continue_final_message is set to "content" but this is not an accepted field in the chat_template"#
                .to_owned(),
        );
    }
    let text = match content {
        Json::Array(blocks) => match blocks.iter().rev().find_map(|block| block.get("text")) {
            Some(text) => text,
            None => {
                return Err("continue_final_message is set but we could not find any text to continue in the final \
                            message!"
                    .to_owned());
            }
        },
        content => content,
    };
    text.as_str().map(str::to_owned).ok_or_else(|| "continue_final_message needs text to continue".to_owned())
}

/// Appends the tag to the text that the answer continues.
pub(super) fn mark(messages: &mut [Json]) {
    let content = messages.last_mut().and_then(Json::as_object_mut).and_then(|message| message.get_mut("content"));
    let text = match content {
        Some(Json::Array(blocks)) => {
            blocks.iter_mut().rev().filter_map(Json::as_object_mut).find_map(|block| block.get_mut("text"))
        }
        content => content,
    };
    if let Some(Json::String(text)) = text {
        text.push_str(TAG);
    }
}

/// Length of the prompt that is kept, in bytes.
///
/// # Errors
/// When the template dropped the last message.
pub(super) fn kept_length(rendered: &str, final_text: &str) -> Result<usize, String> {
    let tag = TAG.trim_end();
    let place = rendered.rfind(tag).filter(|_| rendered.contains(trim(final_text, None, true, true)));
    let Some(place) = place else {
        return Err("continue_final_message is set but the final message does not appear in the chat after applying \
                    the chat template! This can happen if the chat template deletes portions of the final message."
            .to_owned());
    };
    if rendered[place..].starts_with(TAG) {
        Ok(place)
    } else {
        // The template trimmed the message, so the space before the tag is the template's.
        Ok(trim(&rendered[..place], None, false, true).len())
    }
}

/// Names a message's reasoning is passed under, the standard one first; `_alias_reasoning_fields` in transformers.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Fills `reasoning_content` from older names for it, and `thinking`, which gpt-oss templates read.
pub(super) fn alias_reasoning(message: &mut Map<String, Json>) {
    let reasoning = REASONING.iter().find_map(|name| message.get(*name).filter(|value| !value.is_null())).cloned();
    if let Some(reasoning) = reasoning {
        // transformers builds a new dict: `thinking` first, `reasoning_content` last where it is new.
        let mut rest = std::mem::take(message);
        let thinking = rest.shift_remove("thinking").unwrap_or_else(|| reasoning.clone());
        message.insert("thinking".to_owned(), thinking);
        message.append(&mut rest);
        message.insert("reasoning_content".to_owned(), reasoning);
    }
}
