package tokenwire

import pb "tokenwire/tokenwirepb"

// Text is a prompt of text, to which the tokenizer adds its special tokens.
func Text(text string) *pb.Prompt {
	return &pb.Prompt{Text: &text}
}

// TokenIDs is a prompt of token ids, to which nothing is added.
func TokenIDs(ids ...int32) *pb.Prompt {
	return &pb.Prompt{TokenIds: ids}
}

// Conversation is a conversation of these messages, the oldest first.
func Conversation(messages ...*pb.ChatMessage) *pb.Conversation {
	return &pb.Conversation{Messages: messages}
}

// System is a message that says how the assistant is to behave. Templates want it first, if at all.
func System(text string) *pb.ChatMessage {
	return Message("system", text)
}

// User is a message of the user.
func User(text string) *pb.ChatMessage {
	return Message("user", text)
}

// Assistant is an answer of an earlier turn.
func Assistant(text string) *pb.ChatMessage {
	return Message("assistant", text)
}

// Message is a message of a role: system, developer, user, assistant or tool.
func Message(role, text string) *pb.ChatMessage {
	return &pb.ChatMessage{
		Role:    role,
		Content: []*pb.ContentPart{{Part: &pb.ContentPart_Text{Text: text}}},
	}
}

// MessageText joins the text parts of a message.
func MessageText(message *pb.ChatMessage) string {
	var text string
	for _, part := range message.GetContent() {
		text += part.GetText()
	}
	return text
}
