// Browsers start no Web Worker from a page that is opened as a file. This class has the part of the interface of Worker that
// the search of the site uses, and runs the worker's script in a hidden iframe instead.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(url) {
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      this.inner = this.frame.contentWindow; // about:blank: of the same origin as the page
      this.inner.postMessage = (data) => this.deliver(this, data);
      this.loaded = new Promise((resolve) => {
        const script = this.inner.document.createElement("script");
        script.src = url;
        script.onload = resolve;
        script.onerror = (event) => this.onerror?.(event);
        this.inner.document.head.append(script);
      });
    }

    // As between threads: a copy, and not before the caller has finished.
    deliver(receiver, data) {
      const copy = structuredClone(data);
      setTimeout(() => receiver.onmessage?.(new MessageEvent("message", { data: copy })));
    }

    postMessage(data) {
      const copy = structuredClone(data);
      this.loaded.then(() => this.deliver(this.inner, copy));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
