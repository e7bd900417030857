// The verdict: three buttons with their keys, a note, and who said what. The server decides what is kept.
import { isTyping, moment, utc } from "tectum";

const CHOICES = [
  { verdict: "real", key: "r", icon: "check_circle", name: "Real", hint: "it happened" },
  { verdict: "false", key: "f", icon: "cancel", name: "False alarm", hint: "nothing was wrong" },
  { verdict: "unsure", key: "u", icon: "help", name: "Unsure", hint: "cannot tell" },
];

export default {
  template: `
  <div>
    <div class="verdicts" role="group" aria-label="Verdict">
      <button v-for="c in choices" :key="c.key" type="button" :class="c.verdict" :aria-pressed="mine === c.verdict ? 'true' : 'false'"
        :disabled="!may || busy" :aria-keyshortcuts="c.key" @click="judge(c.verdict)">
        <q-icon :name="c.icon"/><span>{{ c.name }} <kbd>{{ c.key }}</kbd></span><small>{{ c.hint }}</small>
      </button>
    </div>
    <p v-if="!may" class="dim note">You may look at alerts, but not judge them.</p>
    <textarea v-else class="note" v-model="note" maxlength="2000" rows="2" aria-label="Note, kept with the verdict"
      placeholder="A note, kept with the verdict (optional)"></textarea>
    <div v-if="may && mine && note !== said" class="note"><button type="button" :disabled="busy" @click="judge(mine)">Save note</button></div>
    <ul v-if="history.length" class="history" aria-label="Verdicts so far">
      <li v-for="entry in history" :key="entry.by">
        <span class="verdict" :class="entry.verdict"><q-icon :name="icon(entry.verdict)"/>{{ entry.verdict }}</span>
        <span class="by"><b>{{ entry.by }}</b>, <time :title="utc(entry.at)">{{ moment(entry.at) }}</time></span>
        <span v-if="entry.note" class="text">{{ entry.note }}</span>
      </li>
    </ul>
  </div>`,
  props: { may: Boolean, mine: String, said: { type: String, default: "" }, history: Array },
  emits: ["judge"],
  data() {
    return { choices: CHOICES, note: this.said, busy: false };
  },
  watch: {
    history() {
      this.busy = false;
    },
  },
  mounted() {
    window.addEventListener("keydown", this.key);
  },
  unmounted() {
    window.removeEventListener("keydown", this.key);
    clearTimeout(this.patience);
  },
  methods: {
    moment,
    utc,
    icon: (verdict) => CHOICES.find((c) => c.verdict === verdict)?.icon ?? "help",
    judge(verdict) {
      if (!this.may || this.busy) return;
      this.busy = true;
      // The answer comes as a new history; where none comes the buttons must not stay dead.
      this.patience = setTimeout(() => (this.busy = false), 3000);
      this.$emit("judge", { verdict, note: this.note });
    },
    key(event) {
      if (isTyping(event)) return;
      const choice = CHOICES.find((c) => c.key === event.key);
      if (choice) {
        event.preventDefault();
        this.judge(choice.verdict);
      }
    },
  },
};
