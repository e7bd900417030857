// The clip of an alert. `start` is where its first picture lies, in seconds from the onset; the tracks below it
// follow and steer it by two window events: `tectum-clock` (clip → tracks) and `tectum-seek` (tracks → clip).
import { isTyping } from "tectum";

export default {
  template: `
  <div class="clip">
    <video v-if="src" ref="video" :src="src" :poster="poster || undefined" controls playsinline preload="metadata"
      aria-label="Clip of the alert, with sound" @play="follow" @seeked="tell" @timeupdate="tell" @error="failed = true"></video>
    <img v-if="!src && poster" :src="poster" alt="Snapshot, until the clip is here">
    <div v-if="!src || failed" class="waiting big">
      <q-icon :name="failed ? 'error_outline' : 'hourglass_top'"/>
      <span>{{ failed ? 'This browser could not play the clip.' : waiting }}</span>
      <a v-if="failed" :href="src" download>Download it</a>
    </div>
  </div>`,
  props: { src: String, poster: String, start: { type: Number, default: 0 }, waiting: String },
  data: () => ({ failed: false }),
  watch: {
    src() {
      this.failed = false;
    },
  },
  mounted() {
    window.addEventListener("tectum-seek", this.seek);
    window.addEventListener("keydown", this.key);
  },
  unmounted() {
    window.removeEventListener("tectum-seek", this.seek);
    window.removeEventListener("keydown", this.key);
    cancelAnimationFrame(this.frame);
  },
  methods: {
    tell() {
      const video = this.$refs.video;
      if (video) window.dispatchEvent(new CustomEvent("tectum-clock", { detail: this.start + video.currentTime }));
    },
    follow() {
      cancelAnimationFrame(this.frame);
      const step = () => {
        const video = this.$refs.video;
        if (!video || video.paused) return;
        this.tell();
        this.frame = requestAnimationFrame(step);
      };
      step();
    },
    seek(event) {
      const video = this.$refs.video;
      if (video && video.duration) video.currentTime = Math.min(Math.max(0, event.detail - this.start), video.duration);
    },
    key(event) {
      if (isTyping(event)) return;
      // Real links: the browser's own history works, and so does a link that is not there.
      const link = { j: "older", k: "newer", Escape: "back" }[event.key];
      if (link) document.getElementById(link)?.click();
      const video = this.$refs.video;
      if (!video || event.target.closest("button, a, input")) return;
      if (event.key === " ") {
        event.preventDefault();
        video.paused ? video.play() : video.pause();
      } else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
        video.currentTime += event.key === "ArrowLeft" ? -1 : 1;
      }
    },
  },
};
