"use strict";
// The search of the site runs in a worker, and no browser starts one from a file: opened from a folder, its script runs in
// a frame of the page instead. The theme's own way would be a script from another host.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc = "";
      this.scope = new Promise((ready) => {
        frame.addEventListener("load", () => {
          const scope = frame.contentWindow;
          // What the script sends is for this page, not for its own frame.
          scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
          const script = scope.document.createElement("script");
          script.src = url;
          script.addEventListener("load", () => ready(scope));
          scope.document.body.append(script);
        }, { once: true });
      });
      document.body.append(frame);
    }

    postMessage(data) {
      this.scope.then((scope) => scope.dispatchEvent(new scope.MessageEvent("message", { data })));
    }
  };
}
