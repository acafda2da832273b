"""The browser's half of the webcam: draws boxes over the live picture. No library, no frame sent back.

The value is what `demos.yolov9._overlay_value` returns. The script looks up the webcam's own <video> by the
id of its component, lays a canvas over it, and redraws whenever a new value arrives.
"""

from models.yolov9.classes import PALETTE

OVERLAY_HTML = """<div class="yolov9-bar" role="status" aria-live="off">
<strong class="yolov9-counts"></strong><span class="yolov9-times"></span></div>"""

OVERLAY_CSS = """
.yolov9-bar { display: flex; gap: 1.5em; flex-wrap: wrap; min-height: 1.6em; font-size: 1.1em; }
.yolov9-times { opacity: 0.75; font-variant-numeric: tabular-nums; }
"""

OVERLAY_JS = """
const palette = PALETTE;
const text = (query, value) => { const e = element.querySelector(query); if (e) e.textContent = value; };
let canvas = null;

function place(video) {
  if (!canvas) {
    canvas = document.createElement('canvas');
    canvas.className = 'yolov9-canvas';
    canvas.style.cssText = 'position:absolute;pointer-events:none;z-index:5';
  }
  if (canvas.parentElement !== video.parentElement) {
    if (getComputedStyle(video.parentElement).position === 'static') video.parentElement.style.position = 'relative';
    video.parentElement.appendChild(canvas);
  }
  // The video may be letterboxed inside its element: find the picture's own rectangle.
  const scale = Math.min(video.clientWidth / video.videoWidth, video.clientHeight / video.videoHeight);
  const width = video.videoWidth * scale, height = video.videoHeight * scale;
  const ratio = window.devicePixelRatio || 1;
  canvas.style.width = width + 'px';
  canvas.style.height = height + 'px';
  canvas.style.left = video.offsetLeft + (video.clientWidth - width) / 2 + 'px';
  canvas.style.top = video.offsetTop + (video.clientHeight - height) / 2 + 'px';
  if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
  if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
  return ratio;
}

function draw() {
  const found = props.value;
  const video = document.querySelector('#yolov9-webcam video');
  if (!found || !found.detections || !video || !video.videoWidth) {
    if (canvas) canvas.remove();
    text('.yolov9-counts', ''); text('.yolov9-times', '');
    return;
  }
  const ratio = place(video), context = canvas.getContext('2d');
  const sx = canvas.width / found.width, sy = canvas.height / found.height;
  context.clearRect(0, 0, canvas.width, canvas.height);
  const type = Math.max(13, canvas.clientWidth / 42) * ratio;
  context.font = '600 ' + type + 'px system-ui, sans-serif';
  context.textBaseline = 'top';
  for (const d of [...found.detections].reverse()) {
    const colour = palette[d.class_id % palette.length];
    const [x0, y0, x1, y1] = [d.box[0] * sx, d.box[1] * sy, d.box[2] * sx, d.box[3] * sy];
    context.strokeStyle = context.fillStyle = colour;
    context.lineWidth = 3 * ratio;
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
    const id = d.track_id !== null && d.track_id >= 0 ? '#' + d.track_id + ' ' : '';
    const label = id + d.name + (found.scores ? ' ' + d.score.toFixed(2) : '');
    const width = context.measureText(label).width + type * 0.5;
    const top = y0 >= type * 1.4 ? y0 - type * 1.4 : y0;
    context.fillRect(x0 - 1.5 * ratio, top, width, type * 1.4);
    context.fillStyle = '#000';
    context.fillText(label, x0 + type * 0.2, top + type * 0.2);
  }
  const words = Object.entries(found.counts).map(([name, count]) => count + ' ' + name).join(', ');
  text('.yolov9-counts', words || 'Nothing found');
  const t = found.times;
  text('.yolov9-times', t.fps.toFixed(1) + ' frames/s · pre ' + t.pre.toFixed(1) + ' ms, network '
    + t.network.toFixed(1) + ' ms, NMS ' + t.nms.toFixed(1) + ' ms');
  element.dispatchEvent(new CustomEvent('yolov9-drawn', { bubbles: true, detail: found }));
}
watch('value', draw);
window.addEventListener('resize', draw);
""".replace("PALETTE", str(list(PALETTE)))
