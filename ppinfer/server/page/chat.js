// A conversation with the model, as any client of the API has it.

const LONG_BLOCK = 2000; // characters

// An answer that grows, in blocks of a paragraph or so: only the last is laid out anew. The text is
// shown once a frame, since it may come faster than it can be.
class Growing {
  constructor(parent, follow) {
    this.parent = parent;
    this.follow = follow;
    this.typing = make("span", "typing");
    this.unseen = "";
    this.begin();
  }

  begin() {
    const block = make("div");
    this.last = document.createTextNode("");
    block.append(this.last, this.typing);
    this.parent.append(block);
  }

  add(text) {
    if (!this.unseen) requestAnimationFrame(() => this.show());
    this.unseen += text;
  }

  show() {
    const parts = this.unseen.match(/[^\n]*\n|[^\n]+/g) || [];
    this.unseen = "";
    if (parts.length) this.follow(() => parts.forEach((part) => this.append(part)));
  }

  append(part) {
    const isLong = this.last.length > LONG_BLOCK && /^\s/.test(part);
    if (isLong || this.last.data.endsWith("\n")) this.begin();
    this.last.appendData(part);
  }

  end() {
    this.show();
    this.typing.remove();
  }
}

class Chat {
  constructor() {
    this.messages = [];
    this.controller = null;
    this.log = $("chat-log");
    this.nothing = this.log.firstElementChild;
    $("chat-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    $("chat-text").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.send();
      }
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.stop();
    });
    $("chat-stop").addEventListener("click", () => this.stop());
    $("chat-new").addEventListener("click", () => this.forget());
  }

  stop() {
    this.controller?.abort();
  }

  forget() {
    this.stop();
    this.messages = [];
    this.log.replaceChildren(this.nothing);
    $("chat-new").hidden = true;
    $("chat-text").focus();
  }

  async send() {
    const text = $("chat-text").value.trim();
    if (!text || this.controller) return;
    $("chat-text").value = "";
    this.nothing.remove();
    this.messages.push({ role: "user", content: text });
    this.say("user", text);
    const answer = this.say("assistant", "");
    this.working(true);
    const messages = this.messages;
    const { content, problem } = await this.stream(answer);
    if (messages === this.messages) { // else it was forgotten meanwhile
      if (content) messages.push({ role: "assistant", content });
      else messages.pop();
    }
    this.working(false);
    setText($("chat-told"), problem || "The answer is complete.");
  }

  async stream(answer) {
    const text = new Growing(answer, (change) => this.follow(change));
    this.controller = new AbortController();
    const began = performance.now();
    let content = "", first = null, usage = null, problem = "";
    try {
      const options = {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        signal: this.controller.signal,
        body: JSON.stringify({ messages: this.messages, stream: true, stream_options: { include_usage: true } }),
      };
      for await (const chunk of events("v1/chat/completions", options)) {
        usage = chunk.usage || usage;
        const delta = chunk.choices[0]?.delta.content;
        if (!delta) continue;
        first ??= performance.now();
        content += delta;
        text.add(delta);
      }
    } catch (error) {
      problem = error.name === "AbortError" ? "Stopped." : error instanceof Refused ? error.message : "The server is gone.";
    }
    text.end();
    this.follow(() => {
      if (problem) answer.append(make("span", problem === "Stopped." ? "facts" : "problem", problem));
      else if (usage && first !== null) answer.append(make("span", "facts figure", this.facts(usage, began, first)));
    });
    return { content, problem };
  }

  facts(usage, began, first) {
    const took = (performance.now() - first) / 1000, tokens = usage.completion_tokens;
    const rate = tokens > 1 && took > 0 ? ` · ${number((tokens - 1) / took)} tokens/s` : "";
    return `${tokens} ${tokens === 1 ? "token" : "tokens"}${rate} · first after ${seconds((first - began) / 1000)}`;
  }

  say(role, text) {
    const message = make("div", `message ${role}`, text);
    message.prepend(make("span", "hidden", role === "user" ? "You: " : "Model: "));
    this.follow(() => this.log.append(message));
    return message;
  }

  // Stay at the end of the conversation, unless the reader has gone up.
  follow(change) {
    const log = this.log, atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    change();
    if (atEnd) log.scrollTop = log.scrollHeight;
  }

  working(on) {
    if (!on) this.controller = null;
    const hadFocus = document.activeElement === $("chat-stop");
    $("chat-stop").hidden = !on;
    $("chat-send").hidden = on;
    $("chat-new").hidden = on;
    if (hadFocus) $("chat-text").focus();
  }
}
