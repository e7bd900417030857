// A moment: local time, UTC in the title; `relative` says how long ago and keeps counting.
import { ago, day, moment, time, utc } from "tectum";

export default {
  template: `<time :datetime="iso" :title="title">{{ text }}</time>`,
  props: { ms: Number, form: { type: String, default: "moment" } },
  data: () => ({ now: Date.now() }),
  computed: {
    iso() {
      return new Date(this.ms).toISOString();
    },
    title() {
      return this.form === "ago" ? `${moment(this.ms, this.now)} · ${utc(this.ms)}` : utc(this.ms);
    },
    text() {
      if (this.form === "ago") return ago(this.ms, this.now);
      if (this.form === "full") return `${day(this.ms, this.now)}, ${time(this.ms)}`;
      return moment(this.ms, this.now);
    },
  },
  mounted() {
    this.tick = setInterval(() => (this.now = Date.now()), this.form === "ago" ? 5_000 : 60_000);
  },
  unmounted() {
    clearInterval(this.tick);
  },
};
