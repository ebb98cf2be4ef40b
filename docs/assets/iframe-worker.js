// The search of the site runs in a Worker, which browsers refuse to pages that are opened as files. There, run its script
// in a hidden frame instead. The offline plugin of the theme would load such a script from the network, unless a file
// with "iframe-worker" in its name is given in mkdocs.yml.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.waiting = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.addEventListener("load", () => this.start(url), { once: true });
      document.body.append(this.frame);
    }
    start(url) {
      const inner = this.frame.contentWindow;
      inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      inner.importScripts = (...urls) => Promise.all(urls.map((other) => this.load(other)));
      this.load(url).then(() => {
        this.send = (data) => inner.dispatchEvent(new inner.MessageEvent("message", { data }));
        this.waiting.forEach(this.send);
      });
    }
    load(url) {
      const script = this.frame.contentDocument.createElement("script");
      script.src = new URL(url, location.href).href;
      return new Promise((loaded) => {
        script.onload = loaded;
        this.frame.contentDocument.body.append(script);
      });
    }
    postMessage(data) {
      if (this.send) this.send(data);
      else this.waiting.push(data);
    }
    terminate() {
      this.frame.remove();
    }
  };
}
