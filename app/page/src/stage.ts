// The stage: a scan and a mesh in one frame, seen upright. Knows three.js, and nothing of the service.

import {
  BufferAttribute,
  BufferGeometry,
  Box3,
  CanvasTexture,
  CircleGeometry,
  Color,
  DirectionalLight,
  Fog,
  Group,
  HemisphereLight,
  Matrix4,
  Mesh,
  MeshBasicMaterial,
  MeshStandardMaterial,
  PerspectiveCamera,
  Points as Cloud,
  PointsMaterial,
  Quaternion,
  Scene,
  Sphere,
  Spherical,
  SRGBColorSpace,
  Vector3,
  WebGLRenderer,
} from "three";
import { OrbitControls } from "three/examples/jsm/controls/OrbitControls.js";
import { GLTFLoader } from "three/examples/jsm/loaders/GLTFLoader.js";
import { coarser } from "./coarse";
import type { Points } from "./points";

export * from "./depth";
export * from "./points";

/** A mesh as the service sends it. */
export interface Shape {
  geometry: BufferGeometry; // scan's frame and unit
  turn: Matrix4; // from the scan's frame to an upright one
  faces: number;
  colored: boolean;
  deviation: { largest: number; median: number } | null; // scan's unit; largest: of the last colour
}

const SCALE = ["#31688e", "#35b779", "#fde725", "#dc322f"]; // of `model.mesh`: sure to unsure
const LARGE = 0.08; // share of half the diagonal that has the last colour, as there
const SLOW = 60; // milliseconds a frame may take while the view turns; after that less is drawn
const REST = 200; // milliseconds without a turn until all of it is drawn again
const FEW_POINTS = 15_000;
const HURRIED = 0.5; // share of the screen's sharpness meanwhile
const TOOLBAR = 74; // pixels at the lower edge that the buttons take
const LEGEND = 34; // and at the upper edge the legend of colours
const TURNS: Record<string, Vector3> = {
  "+y": new Vector3(0, 1, 0),
  "-y": new Vector3(0, -1, 0),
  "+z": new Vector3(0, 0, 1),
  "-z": new Vector3(0, 0, -1),
  "+x": new Vector3(1, 0, 0),
  "-x": new Vector3(-1, 0, 0),
};

/** Read a GLB. Throws when it holds no mesh. */
export async function readShape(file: Blob): Promise<Shape> {
  const { scene } = await new GLTFLoader().parseAsync(await file.arrayBuffer(), "");
  scene.updateMatrixWorld(true);
  const found = scene.getObjectsByProperty("isMesh", true)[0] as Mesh | undefined;
  if (!found) throw new Error("the file holds no mesh");
  const { geometry } = found;
  if (!geometry.getAttribute("normal")) geometry.computeVertexNormals();
  return {
    geometry,
    turn: found.matrixWorld.clone(),
    faces: (geometry.index ?? geometry.getAttribute("position")).count / 3,
    colored: geometry.hasAttribute("color"),
    deviation: paint(geometry),
  };
}

// Keeps the colours of the file as `own`, and those of the deviations as `unsure`.
function paint(geometry: BufferGeometry): Shape["deviation"] {
  if (geometry.hasAttribute("color")) geometry.setAttribute("own", geometry.getAttribute("color"));
  const deviation = geometry.getAttribute("_deviation") ?? geometry.getAttribute("_DEVIATION");
  if (!deviation) return null;
  geometry.computeBoundingBox();
  const largest = (LARGE * geometry.boundingBox!.getSize(new Vector3()).length()) / 2;
  const stops = SCALE.map((hex) => new Color().setStyle(hex, SRGBColorSpace));
  const colors = new Float32Array(3 * deviation.count);
  const color = new Color();
  for (let vertex = 0; vertex < deviation.count; vertex++) {
    const share = 3 * Math.min(1, Math.max(0, deviation.getX(vertex) / (largest || 1)));
    const stop = Math.min(2, Math.floor(share));
    color.copy(stops[stop]).lerp(stops[stop + 1], share - stop).toArray(colors, 3 * vertex);
  }
  geometry.setAttribute("unsure", new BufferAttribute(colors, 3));
  const sorted = Float32Array.from(deviation.array).sort();
  return { largest, median: sorted[sorted.length >> 1] };
}

/** What is seen; draws only when something has changed. */
export class Stage {
  readonly canvas: HTMLCanvasElement;
  private readonly renderer: WebGLRenderer;
  private readonly scene = new Scene();
  private readonly camera = new PerspectiveCamera(32, 1, 0.01, 100);
  private readonly controls: OrbitControls;
  private readonly haze = new Fog("#ffffff"); // of the points alone: far ones are fainter
  private readonly frame = new Group(); // what is in it has the scan's coordinates
  private readonly cloud: Cloud<BufferGeometry, PointsMaterial>;
  private readonly body: Mesh<BufferGeometry, MeshStandardMaterial>;
  private readonly shadow: Mesh<CircleGeometry, MeshBasicMaterial>;
  private shape: Shape | null = null;
  private seen = { scan: true, mesh: true, unsure: false };
  private radius = 1;
  private some = 1000; // points beside a mesh
  private dot = 2; // size of a point, in pixels of the page
  private waiting = false;
  private turning = false;
  private slow = false; // whether a frame of all there is took too long
  private rest: ReturnType<typeof setTimeout> | undefined;
  private fine: BufferAttribute | null = null; // faces of the mesh
  private rough: BufferAttribute | null = null; // those of its coarser one, once it is needed
  private readonly dark = matchMedia("(prefers-color-scheme: dark)");

  /** Throws where the browser has no WebGL. */
  constructor(private readonly place: HTMLElement) {
    this.renderer = new WebGLRenderer({ antialias: true, alpha: true, preserveDrawingBuffer: true });
    this.canvas = this.renderer.domElement;
    place.append(this.canvas);
    this.cloud = new Cloud(new BufferGeometry(), new PointsMaterial({ sizeAttenuation: false }));
    this.cloud.material.onBeforeCompile = rounded;
    this.body = new Mesh(new BufferGeometry(), new MeshStandardMaterial({ roughness: 0.78, metalness: 0, fog: false, polygonOffset: true, polygonOffsetFactor: 1.5, polygonOffsetUnits: 1.5 }));
    this.shadow = new Mesh(new CircleGeometry(1, 48), new MeshBasicMaterial({ transparent: true, depthWrite: false, fog: false, map: softDisc() }));
    this.shadow.rotation.x = -Math.PI / 2;
    this.shadow.renderOrder = -1;
    this.frame.matrixAutoUpdate = false;
    this.frame.add(this.cloud, this.body);
    this.cloud.visible = this.body.visible = this.shadow.visible = false;
    this.scene.fog = this.haze;
    this.scene.add(this.frame, this.shadow, ...lights(this.camera), this.camera);
    this.controls = new OrbitControls(this.camera, this.canvas);
    this.controls.enableDamping = true;
    this.controls.dampingFactor = 0.12;
    this.controls.addEventListener("change", () => this.turn());
    new ResizeObserver(() => this.resize()).observe(place);
    this.dark.addEventListener("change", () => this.tint());
    this.tint();
    this.home();
  }

  /** Show these points of a scan whose up is `up`, or none. */
  showPoints(points: Points | null, up: string): void {
    this.cloud.geometry.dispose();
    this.cloud.geometry = new BufferGeometry();
    if (points) {
      this.cloud.geometry.setAttribute("position", new BufferAttribute(points.positions, 3));
      this.cloud.geometry.setIndex(new BufferAttribute(shuffled(points.positions.length / 3), 1));
      if (points.colors) this.cloud.geometry.setAttribute("color", new BufferAttribute(points.colors, 3));
    }
    this.slow = false;
    this.tint();
    this.apply();
    this.stand(up);
  }

  /** Turn the scan upright as `up` has it, unless a mesh says how. */
  stand(up: string): void {
    if (this.shape) return;
    const turn = new Quaternion().setFromUnitVectors(TURNS[up] ?? TURNS["+y"], TURNS["+y"]);
    this.frame.matrix.makeRotationFromQuaternion(turn);
    this.home();
  }

  /** Show a mesh, or none; a coarse one is one that the fit is still at. */
  showShape(shape: Shape | null, coarse = false): void {
    if (this.body.material.transparent) this.body.geometry.dispose(); // a coarse one comes once
    if (this.shape) this.body.geometry.setIndex(this.fine);
    this.shape = shape;
    this.body.geometry = shape?.geometry ?? new BufferGeometry();
    this.fine = this.body.geometry.index;
    this.rough = null;
    this.slow = false;
    if (shape) this.frame.matrix.copy(shape.turn);
    this.body.material.transparent = coarse;
    this.body.material.opacity = coarse ? 0.7 : 1;
    this.apply();
    this.ground();
  }

  /** What of it is seen. */
  show(seen: { scan: boolean; mesh: boolean; unsure: boolean }): void {
    this.seen = seen;
    this.apply();
  }

  /** Look at all of it from the front right, slightly above. */
  home(): void {
    const ball = this.box().getBoundingSphere(new Sphere());
    const radius = ball.radius > 0 ? ball.radius : 1;
    const half = Math.atan(Math.tan((this.camera.fov * Math.PI) / 360) * Math.min(1, this.camera.aspect));
    const height = Math.max(300, this.place.clientHeight);
    const distance = (1.02 * radius) / Math.sin(half) / (1 - (LEGEND + TOOLBAR) / height);
    ball.center.y -= ((TOOLBAR - LEGEND) / height) * distance * Math.tan((this.camera.fov * Math.PI) / 360);
    this.camera.position.setFromSpherical(new Spherical(distance, 1.22, 0.65)).add(ball.center);
    this.radius = radius;
    this.camera.near = distance / 100;
    this.camera.far = distance * 20;
    this.camera.updateProjectionMatrix();
    this.controls.target.copy(ball.center);
    this.controls.update();
    this.ground();
    this.draw();
  }

  /** Turn, nearer or farther by hand: radians about the vertical, radians up, and a factor of the distance. */
  move(around: number, above: number, distance = 1): void {
    const seat = new Spherical().setFromVector3(this.camera.position.clone().sub(this.controls.target));
    seat.theta += around;
    seat.phi = Math.min(3.1, Math.max(0.05, seat.phi - above));
    seat.radius *= distance;
    this.camera.position.setFromSpherical(seat).add(this.controls.target);
    this.controls.update();
    this.draw();
  }

  /** A small picture of what is seen, as a data URL. */
  picture(side = 112): string {
    this.render();
    const small = document.createElement("canvas");
    small.width = small.height = side;
    const { width, height } = this.canvas;
    const square = Math.min(width, height);
    small.getContext("2d")!.drawImage(this.canvas, (width - square) / 2, (height - square) / 2, square, square, 0, 0, side, side);
    return small.toDataURL("image/webp", 0.8);
  }

  private box(): Box3 {
    this.frame.updateMatrixWorld(true);
    const box = new Box3();
    for (const thing of [this.cloud, this.body]) if (thing.visible) box.expandByObject(thing);
    return box;
  }

  private apply(): void {
    this.cloud.visible = this.seen.scan && this.cloud.geometry.hasAttribute("position");
    this.body.visible = this.seen.mesh && this.shape !== null;
    this.color();
    this.draw();
  }

  private ground(): void {
    const box = this.box();
    this.shadow.visible = !box.isEmpty();
    if (box.isEmpty()) return;
    const size = box.getSize(new Vector3());
    box.getCenter(this.shadow.position).setY(box.min.y - 0.004 * size.y);
    this.shadow.scale.setScalar(0.85 * Math.max(size.x, size.z));
  }

  private color(): void {
    const geometry = this.body.geometry;
    const colors = this.seen.unsure ? geometry.getAttribute("unsure") : geometry.getAttribute("own");
    if (colors) geometry.setAttribute("color", colors);
    else geometry.deleteAttribute("color");
    this.body.material.vertexColors = Boolean(colors);
    this.body.material.color.set(colors ? "#ffffff" : this.dark.matches ? "#cfd3d2" : "#e4dfd5");
    this.body.material.needsUpdate = true;
  }

  private tint(): void {
    const colored = this.cloud.geometry.hasAttribute("color");
    this.cloud.material.vertexColors = colored;
    this.cloud.material.color.set(colored ? "#ffffff" : this.dark.matches ? "#f08a4b" : "#d8632b");
    this.cloud.material.needsUpdate = true;
    this.haze.color.set(this.dark.matches ? "#1d2529" : "#f3efe7");
    this.shadow.material.color.set("#000000");
    this.shadow.material.opacity = this.dark.matches ? 0.5 : 0.16;
    this.color();
    this.draw();
  }

  private resize(): void {
    const { clientWidth, clientHeight } = this.place;
    if (clientWidth === 0 || clientHeight === 0) return;
    this.renderer.setSize(clientWidth, clientHeight);
    this.some = (clientWidth * clientHeight) / 100;
    this.dot = Math.max(1.7, Math.min(clientWidth, clientHeight) / 290);
    this.camera.aspect = clientWidth / clientHeight;
    this.camera.updateProjectionMatrix();
    this.render();
  }

  private draw(): void {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame((now) => {
      this.waiting = false;
      this.controls.update(); // whose damping asks for the next frame by "change"
      this.render();
      requestAnimationFrame((next) => (this.slow ||= next - now > SLOW));
    });
  }

  private turn(): void {
    this.turning = true;
    clearTimeout(this.rest);
    this.rest = setTimeout(() => {
      this.turning = false;
      this.draw();
    }, REST);
    this.draw();
  }

  private render(): void {
    const distance = this.camera.position.distanceTo(this.controls.target);
    this.haze.near = Math.max(0, distance - 0.9 * this.radius);
    this.haze.far = distance + 2.4 * this.radius;
    // Beside a mesh a part of the points is enough, and leaves the mesh to be seen.
    const hurried = this.turning && this.slow;
    const ratio = Math.min(devicePixelRatio, 2) * (hurried ? HURRIED : 1);
    if (this.renderer.getPixelRatio() !== ratio) this.renderer.setPixelRatio(ratio);
    const most = this.body.visible ? this.some : Infinity;
    this.cloud.geometry.setDrawRange(0, hurried ? Math.min(most, FEW_POINTS) : most);
    if (this.shape) this.body.geometry.setIndex(hurried ? (this.rough ??= coarser(this.body.geometry)) : this.fine);
    this.cloud.material.size = this.dot * ratio * (this.body.visible ? 0.8 : 1);
    this.renderer.render(this.scene, this.camera);
  }
}

function lights(camera: PerspectiveCamera): (HemisphereLight | DirectionalLight)[] {
  const sky = new HemisphereLight("#ffffff", "#8d8a86", 1.5);
  const lamp = new DirectionalLight("#fff6ea", 2.1);
  lamp.position.set(3, 5, 2.5);
  const fill = new DirectionalLight("#dfeaff", 0.5);
  fill.position.set(-1, 0.4, 1);
  camera.add(fill);
  camera.add(fill.target);
  return [sky, lamp];
}

// Squares are the points of WebGL: cut to discs.
function rounded(shader: { fragmentShader: string }): void {
  const disc = "if (length(gl_PointCoord - 0.5) > 0.5) discard;";
  shader.fragmentShader = shader.fragmentShader.replace("void main() {", `void main() { ${disc}`);
}

// In an order of chance, the same each time: any first part of them is spread over the scan.
function shuffled(count: number): Uint32Array<ArrayBuffer> {
  const order = Uint32Array.from({ length: count }, (_, i) => i);
  let state = 1;
  for (let i = count - 1; i > 0; i--) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const j = Math.floor((state / 2 ** 32) * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

function softDisc(): CanvasTexture {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 128;
  const context = canvas.getContext("2d")!;
  const fade = context.createRadialGradient(64, 64, 0, 64, 64, 64);
  for (const [at, alpha] of [[0, 1], [0.35, 0.62], [0.7, 0.14], [1, 0]]) fade.addColorStop(at, `rgba(255,255,255,${alpha})`);
  context.fillStyle = fade;
  context.fillRect(0, 0, 128, 128);
  return new CanvasTexture(canvas);
}
