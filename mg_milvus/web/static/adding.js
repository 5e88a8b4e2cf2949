// "Add images": uploads, or a folder that the server may read, with live progress.

import { ingest, stopIngest, upload, watchIngest } from "./api.js";
import { h } from "./dom.js";
import { fixed, nodes, said, t } from "./strings.js";

const CONCURRENT = 3; // concurrent uploads
const LONGEST = 3500; // characters of a filter that names the new images

export class Adding {
  constructor(dialog, about) {
    Object.assign(this, { dialog, about, changed: false, rejected: 0, paths: [] });
    dialog.addEventListener("close", () => {
      if (this.changed) this.showNew();
    });
  }

  show() {
    const choices = [];
    if (this.about.can_upload) choices.push(this.uploads());
    if (this.about.folders.length) choices.push(this.folders());
    this.bar = h("progress", { max: 1, value: 0, "aria-label": t("progress") });
    this.text = h("p", { role: "status" });
    this.failures = h("ul", { class: "failures", role: "list" });
    this.stop = h("button", { class: "button small", onclick: () => stopIngest() }, t("adding.stop"));
    this.going = h("div", { class: "going", hidden: true }, this.bar, this.text, this.stop, this.failures);
    this.choices = h("div", { class: "choices" }, ...choices);
    this.dialog.replaceChildren(
      h("header", {}, h("h2", { id: "adding-title" }, t("add_images")),
        h("button", { class: "button small", onclick: () => this.dialog.close() }, t("close"))),
      this.choices, this.going);
    this.dialog.showModal();
  }

  /** The images that were uploaded, where an address holds their paths; else the page as it was. */
  showNew() {
    const quoted = this.paths.map((path) => `"${path.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`);
    const where = `path in [${quoted.join(", ")}]`;
    if (!quoted.length || where.length > LONGEST) location.reload();
    else location.search = new URLSearchParams({ "where.expression": where });
  }

  uploads() {
    const chooser = (attributes, text) => {
      const input = h("input", { type: "file", class: "unseen", multiple: true, ...attributes,
        onchange: () => this.send([...input.files].filter((file) => attributes.accept || file.type.startsWith("image/"))) });
      return [h("label", { class: "button", for: attributes.id }, text), input];
    };
    const zone = h("section", { class: "drop",
      ondragover: (event) => event.preventDefault(),
      ondrop: (event) => {
        event.preventDefault();
        this.send([...event.dataTransfer.files]);
      } },
      h("p", {}, ...nodes("adding.or", { drop: h("b", {}, t("adding.drop")) })),
      h("div", { class: "buttons" }, ...chooser({ id: "add-files", accept: "image/*" }, t("adding.choose")),
        ...chooser({ id: "add-folder", webkitdirectory: true }, t("adding.folder"))));
    return zone;
  }

  folders() {
    const choice = h("select", { id: "add-served" }, ...this.about.folders.map((folder) => h("option", {}, folder)));
    return h("section", {},
      h("label", { for: "add-served" }, t("adding.served")), choice,
      h("button", { class: "button", onclick: () => this.run({ folder: choice.value }) }, t("adding.ingest")));
  }

  begin(text) {
    this.rejected = 0;
    this.paths = [];
    this.choices.hidden = true;
    this.going.hidden = false;
    this.failures.replaceChildren();
    this.showProgress(text, 0, 1);
  }

  showProgress(text, done, total) {
    this.text.textContent = text;
    this.bar.max = Math.max(total, 1);
    this.bar.value = done;
  }

  fail(path, reason) {
    this.failures.append(h("li", {}, h("bdi", {}, path), ` ${reason}`));
  }

  async send(files) {
    if (!files.length) return;
    this.begin(t("adding.sending"));
    this.stop.hidden = true;
    const kept = [];
    const waiting = [...files];
    let done = 0;
    const worker = async () => {
      for (let file = waiting.shift(); file; file = waiting.shift()) {
        try {
          const { upload: name, path } = await upload(file);
          kept.push(name);
          this.paths.push(path);
        } catch (error) {
          this.rejected += 1;
          this.fail(file.name, error.message.replace(`'${file.name}' `, ""));
        }
        done += 1;
        this.showProgress(t("adding.sent", { done, total: files.length }), done, files.length);
      }
    };
    await Promise.all(Array.from({ length: CONCURRENT }, worker));
    if (kept.length) await this.run({ uploads: kept }, false);
    else this.end(t("adding.nothing"));
  }

  async run(what, fresh = true) {
    if (fresh) this.begin(said("looking for images"));
    this.stop.hidden = false;
    try {
      await ingest(what);
    } catch (error) {
      this.end(error.message);
      return;
    }
    watchIngest((job) => this.progress(job));
  }

  progress(job) {
    this.showProgress(t(job.failed ? "adding.step_failed" : "step", { ...job, stage: said(job.stage) }), job.done, job.total);
    if (job.state === "failed") this.end(said(job.error));
    if (job.state !== "done") return;
    const { report } = job;
    this.changed = report.added + report.updated > 0;
    for (const { path, reason } of report.failures) this.fail(path, reason);
    const text = t("adding.report", { ...report, failed: report.failed + this.rejected, seconds: fixed(report.seconds, 1) });
    this.end(report.interrupted ? t("adding.stopped", { report: text }) : text);
    this.bar.value = this.bar.max;
  }

  end(text) {
    this.text.textContent = text;
    this.stop.hidden = true;
  }
}
