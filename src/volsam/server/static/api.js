// The server's HTTP API: one lease, claimed when it is needed and claimed again when it has ended.

const HEARTBEAT_MS = 20_000;
const RETRY_MS = 1_500;
const KEY_PLACE = "volsam-key";

/** What went wrong, in one sentence. `code` is the server's word for it; "gone" when the server does not answer. */
export class ApiError extends Error {
  constructor(status, code, detail, facts = {}) {
    super(detail);
    Object.assign(this, { status, code, facts });
  }
}

/**
 * Speaks with the server for one page.
 *
 * Events: "lost" when the server stops answering, "found" when it answers again, "resumed" (detail: the state) when the
 * session was taken up again under a new lease, "key" when a key is asked for.
 */
export class Api extends EventTarget {
  constructor(base = new URL("api/v1/", document.baseURI)) {
    super();
    this.base = base;
    this.lease = null;
    this.session = null;
    this.lost = null;
    this.resuming = null;
    this.key = sessionStorage.getItem(KEY_PLACE) || "";
    setInterval(() => this.#heartbeat(), HEARTBEAT_MS);
    // A page that is closed or reloaded gives its place back; the session stays saved.
    addEventListener("pagehide", () => {
      if (this.lease) fetch(this.#url("lease"), { method: "DELETE", headers: this.#headers(), keepalive: true });
      this.lease = null;
    });
  }

  setKey(key) {
    this.key = key;
    sessionStorage.setItem(KEY_PLACE, key);
  }

  /** GET without a lease: server, models, studies, saved sessions. */
  look(path) {
    return this.#fetch("GET", path).then((response) => response.json());
  }

  /** Any call under a lease; JSON in and out. */
  async call(method, path, json) {
    return (await this.response(method, path, json)).json();
  }

  /** As `call`, but gives the response itself, for files. `body` may be JSON, or a File or Blob that is sent as it is. */
  async response(method, path, body) {
    await this.#ready(method, path);
    const { lease } = this;
    try {
      return await this.#fetch(method, path, body);
    } catch (error) {
      if (error.code !== "lease") throw error;
      // It ended before the call did anything, so the call may be made again; others may have claimed one meanwhile.
      if (this.lease === lease) this.lease = null;
      await this.#ready(method, path);
      return this.#fetch(method, path, body);
    }
  }

  /** Open a study, or go on with a saved session: `{study, model, ...}` or `{resume, take}`. */
  async open(request) {
    let state;
    try {
      state = await (await this.response("POST", "session", request)).json();
    } catch (error) {
      // This page's own session may still be held by the lease that a reload has left behind.
      if (error.code !== "conflict" || !request.resume || request.resume !== this.session) throw error;
      state = await (await this.response("POST", "session", { ...request, take: true })).json();
    }
    this.session = state.id;
    return state;
  }

  /** Send a file of this computer and open it. */
  async upload(file, model, frame, annotator) {
    const told = { name: file.name, model, frame, annotator };
    const wish = Object.entries(told).filter(([, value]) => value !== undefined && value !== "");
    const query = new URLSearchParams(wish);
    const state = await (await this.response("POST", `session/file?${query}`, file)).json();
    this.session = state.id;
    return state;
  }

  /** Take the session up again under a new lease. Calls that come together wait for one attempt. */
  resume() {
    this.resuming ??= (async () => {
      try {
        this.lease = null;
        await this.#claim();
        const response = await this.#fetch("POST", "session", { resume: this.session, take: true });
        await response.json();
        const state = await (await this.#fetch("GET", "session?masks=true")).json();
        this.dispatchEvent(new CustomEvent("resumed", { detail: state }));
        return state;
      } finally {
        this.resuming = null;
      }
    })();
    return this.resuming;
  }

  /** Resolves when the server answers again; the session is then resumed. */
  whenBack() {
    this.lost ??= (async () => {
      this.dispatchEvent(new Event("lost"));
      for (;;) {
        await new Promise((done) => setTimeout(done, RETRY_MS));
        try {
          await this.#fetch("GET", "version");
          if (this.session) await this.resume();
          break;
        } catch (error) {
          if (error.code !== "gone" && error.code !== "full") {
            this.dispatchEvent(new CustomEvent("failed", { detail: error }));
            break;
          }
        }
      }
      this.lost = null;
      this.dispatchEvent(new Event("found"));
    })();
    return this.lost;
  }

  /** A lease, and in it the session, unless the call opens one. */
  async #ready(method, path) {
    await this.resuming;
    if (this.lease) return;
    const opens = method === "POST" && /^session($|\/file|\/array)/.test(path);
    if (this.session && !opens) await this.resume();
    else await this.#claim();
  }

  async #claim() {
    if (this.lease) return;
    this.lease = (await (await this.#fetch("POST", "lease")).json()).lease;
  }

  async #heartbeat() {
    const { lease } = this;
    if (!lease || this.lost || this.resuming) return;
    try {
      await this.#fetch("POST", "lease/heartbeat");
    } catch (error) {
      if (error.code === "lease" && this.lease === lease) this.lease = null; // claimed again, and resumed, with the next action
      if (error.code === "gone") this.whenBack();
    }
  }

  async #fetch(method, path, body) {
    const binary = body instanceof Blob;
    const headers = this.#headers();
    if (body !== undefined) headers["Content-Type"] = binary ? "application/octet-stream" : "application/json";
    let response;
    try {
      response = await fetch(this.#url(path), { method, headers, body: binary ? body : JSON.stringify(body) });
    } catch {
      throw new ApiError(0, "gone", "The server does not answer; is volsam still running?");
    }
    if (response.ok) return response;
    const { detail, code, ...facts } = await response.json().catch(() => ({}));
    if (response.status === 401) this.dispatchEvent(new Event("key"));
    throw new ApiError(response.status, code ?? "unknown", sentence(detail ?? `the server answered ${response.status}`), facts);
  }

  #url(path) {
    return new URL(path, this.base);
  }

  #headers() {
    const headers = {};
    if (this.key) headers.Authorization = `Bearer ${this.key}`;
    if (this.lease) headers["X-Lease-Token"] = this.lease;
    return headers;
  }
}

/** A capital at the beginning, but not where a file's name stands there. */
function sentence(text) {
  return String(text).replace(/^[a-z]+(?=[ ,:])/, (word) => word[0].toUpperCase() + word.slice(1));
}
