// The requests in flight. Rows stay the same elements while their request lives, so that the focus
// stays where it is.

class Requests {
  constructor(say) {
    this.say = say;
    this.rows = new Map();
    this.body = $("requests").tBodies[0];
  }

  take(requests, others) {
    const seen = new Set();
    for (const request of requests) {
      let key = request.id;
      while (seen.has(key)) key += "+"; // ids may be the clients' own, and the same
      seen.add(key);
      if (!this.rows.has(key)) this.rows.set(key, this.row(request));
      this.fill(this.rows.get(key), request);
    }
    for (const [key, row] of this.rows) if (!seen.has(key)) this.remove(key, row);
    $("requests").hidden = !requests.length;
    $("no-requests").hidden = requests.length > 0;
    setText($("others"), others ? `and ${others} of other keys` : "");
  }

  row(request) {
    const row = make("tr"), phase = make("span", "phase"), button = make("button", "", "Cancel");
    const cells = {
      id: make("td", "id", request.id), state: make("td", "state"), age: make("td", "number age"),
      prompt: make("td", "number"), fresh: make("td", "number"), cancel: make("td"),
    };
    cells.id.title = request.id;
    cells.prompt.dataset.name = "prompt";
    cells.fresh.dataset.name = "new";
    cells.state.append(phase);
    button.type = "button";
    button.setAttribute("aria-label", `Cancel ${request.id}`);
    button.addEventListener("click", () => this.cancel(request.id, button));
    cells.cancel.append(button);
    row.append(...Object.values(cells));
    this.body.append(row);
    return { row, phase, button, ...cells };
  }

  fill(row, request) {
    setText(row.phase, request.answers > 1 ? `${request.phase}, ${request.answers} answers` : request.phase);
    row.phase.dataset.phase = request.phase;
    setText(row.age, seconds(request.age));
    setText(row.prompt, whole.format(request.prompt_tokens));
    setText(row.fresh, whole.format(request.new_tokens));
  }

  remove(key, { row, button }) {
    const hadFocus = document.activeElement === button;
    const next = (row.nextElementSibling || row.previousElementSibling)?.querySelector("button");
    row.remove();
    this.rows.delete(key);
    if (hadFocus) (next || $("requests-title")).focus();
  }

  async cancel(id, button) {
    if (button.ariaDisabled === "true") return;
    button.ariaDisabled = "true"; // a button that is really disabled would lose the focus
    try {
      await ask(`requests/${encodeURIComponent(id)}`, { method: "DELETE" });
      this.say(`Request ${id} was cancelled.`);
    } catch (error) {
      button.ariaDisabled = "false";
      this.say(`Request ${id} was not cancelled: ${error.message}`);
    }
  }
}
