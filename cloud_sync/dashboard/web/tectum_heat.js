// A snapshot with the model's heat map over it. Cells are probabilities 0..255, row-major, drawn smoothly.
// Violet to pale rose: no fire, sky, wood or concrete has these colours, so the map is never taken for the picture.
const STOPS = [
  [0, [60, 30, 200, 0]],
  [0.15, [70, 40, 210, 50]],
  [0.45, [150, 40, 220, 140]],
  [0.7, [235, 45, 175, 185]],
  [0.88, [255, 110, 165, 215]],
  [1, [255, 225, 240, 235]],
];

function colour(value) {
  const upper = STOPS.findIndex(([at]) => value <= at);
  if (upper <= 0) return STOPS[upper === 0 ? 0 : STOPS.length - 1][1];
  const [a, from] = STOPS[upper - 1];
  const [b, to] = STOPS[upper];
  return from.map((part, index) => part + ((to[index] - part) * (value - a)) / (b - a));
}

export default {
  template: `
  <figure class="heat">
    <div class="heat-stage" :class="{bare: !src}">
      <img v-if="src" :src="src" alt="Snapshot of the alert" @error="failed = true" :hidden="failed">
      <canvas ref="canvas" v-show="map && on" :style="{opacity: strength / 100}" role="img" :aria-label="words"></canvas>
      <div v-if="!src || failed" class="waiting"><q-icon name="hourglass_top"/><span>{{ failed ? 'The snapshot could not be read' : waiting }}</span></div>
    </div>
    <figcaption v-if="map" class="heat-controls">
      <label class="switch"><input type="checkbox" v-model="on" aria-label="Show heat map"><span></span>Heat map</label>
      <input type="range" min="10" max="100" v-model.number="strength" :disabled="!on" aria-label="Heat map opacity">
      <span class="dim">hottest cell {{ (hottest / 255).toFixed(2) }}</span>
    </figcaption>
    <figcaption v-else class="dim">This alert has no heat map.</figcaption>
  </figure>`,
  props: { src: String, map: Object, waiting: String },
  data: () => ({ on: true, strength: 75, failed: false, hottest: 0 }),
  computed: {
    words() {
      return `Heat map: where in the picture the model saw the anomaly; hottest cell ${(this.hottest / 255).toFixed(2)}`;
    },
  },
  watch: {
    map: { handler: "paint", deep: true },
    src() {
      this.failed = false;
    },
  },
  mounted() {
    this.paint();
  },
  methods: {
    paint() {
      if (!this.map) return;
      const { rows, cols, values } = this.map;
      const cells = Uint8Array.from(atob(values), (c) => c.charCodeAt(0));
      this.hottest = cells.reduce((a, b) => Math.max(a, b), 0);
      const small = new OffscreenCanvas(cols, rows);
      const image = new ImageData(cols, rows);
      cells.slice(0, rows * cols).forEach((cell, index) => image.data.set(colour(cell / 255), index * 4));
      small.getContext("2d").putImageData(image, 0, 0);
      // Two steps of smoothing: one bilinear step from a 12 x 16 grid shows its diamonds.
      const middle = new OffscreenCanvas(cols * 4, rows * 4);
      this.stretch(middle.getContext("2d"), small, middle);
      const canvas = this.$refs.canvas;
      canvas.width = cols * 16;
      canvas.height = rows * 16;
      this.stretch(canvas.getContext("2d"), middle, canvas);
    },
    stretch(context, from, to) {
      context.imageSmoothingQuality = "high";
      context.drawImage(from, 0, 0, to.width, to.height);
    },
  },
};
