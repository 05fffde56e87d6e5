// The report's one 3D viewer: shows a head (.glb) in an element and lets it be turned. Bundled with three.js into
// viewer.min.js (README.md); the page loads that file when the first head is asked for, and calls window.head3dViewer.
import {
  AmbientLight, Box3, DirectionalLight, DoubleSide, Mesh, MeshBasicMaterial, MeshLambertMaterial, PerspectiveCamera,
  Scene, Vector3, WebGLRenderer,
} from "three";
import { GLTFLoader } from "three/examples/jsm/loaders/GLTFLoader.js";
import { OrbitControls } from "three/examples/jsm/controls/OrbitControls.js";

const STEP = Math.PI / 24; // an arrow key turns by 7.5 degrees
const FOV_DEG = 25;

/** Make the viewer in `host`; throws where the browser has no WebGL. */
window.head3dViewer = function (host) {
  const renderer = new WebGLRenderer({ antialias: true, alpha: true });
  const canvas = renderer.domElement;
  const scene = new Scene();
  const camera = new PerspectiveCamera(FOV_DEG, 1, 0.01, 10);
  const controls = new OrbitControls(camera, canvas);
  const key = new DirectionalLight(0xffffff, 2.4);
  key.position.set(-0.6, 0.8, 1);
  scene.add(new AmbientLight(0xffffff, 0.7), key);
  controls.enablePan = false;
  controls.minPolarAngle = Math.PI / 4;
  controls.maxPolarAngle = (3 * Math.PI) / 4;
  host.append(canvas);

  let head = null;
  let asShape = false;
  const draw = () => renderer.render(scene, camera);

  function place(yaw, pitch) {
    const distance = camera.position.length() || 1;
    camera.position.set(
      distance * Math.sin(yaw) * Math.cos(pitch), distance * Math.sin(pitch), distance * Math.cos(yaw) * Math.cos(pitch),
    );
    controls.update();
    draw();
  }

  function turn(right, up) {
    const polar = Math.PI / 2 - controls.getPolarAngle() + up;
    place(controls.getAzimuthalAngle() + right, Math.max(-Math.PI / 4, Math.min(Math.PI / 4, polar)));
  }

  function dress() {
    if (!head) return;
    head.traverse((part) => {
      if (part.isMesh) part.material = asShape ? part.userData.shape : part.userData.picture;
    });
    draw();
  }

  function fit() {
    const width = host.clientWidth;
    const height = host.clientHeight;
    renderer.setPixelRatio(Math.min(window.devicePixelRatio || 1, 2));
    renderer.setSize(width, height, false);
    camera.aspect = width / Math.max(height, 1);
    camera.updateProjectionMatrix();
    draw();
  }

  function drop() {
    if (!head) return;
    scene.remove(head);
    head.traverse((part) => {
      if (!part.isMesh) return;
      part.geometry.dispose();
      if (part.userData.picture.map) part.userData.picture.map.dispose();
      part.userData.picture.dispose();
      part.userData.shape.dispose();
    });
    head = null;
  }

  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  canvas.addEventListener("keydown", (event) => {
    // The head turns to where the arrow points, so the camera goes the other way.
    const moves = { ArrowLeft: [STEP, 0], ArrowRight: [-STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
    if (!moves[event.key]) return;
    event.preventDefault();
    turn(...moves[event.key]);
  });
  controls.addEventListener("change", draw);
  new ResizeObserver(fit).observe(host);

  return {
    turn,
    /** Show a head: bytes of a .glb, and its name for those who cannot see it. */
    async show(bytes, name) {
      const loaded = await new GLTFLoader().parseAsync(bytes, "");
      drop();
      head = loaded.scene;
      head.traverse((part) => {
        if (!part.isMesh) return;
        if (!part.geometry.getAttribute("normal")) part.geometry.computeVertexNormals();
        part.userData.picture = new MeshBasicMaterial({ map: part.material.map, side: DoubleSide });
        part.userData.shape = new MeshLambertMaterial({ color: 0xb9b4ac, side: DoubleSide });
        part.material.dispose();
      });
      const box = new Box3().setFromObject(head);
      const centre = box.getCenter(new Vector3());
      const size = box.getSize(new Vector3());
      head.position.sub(centre);
      scene.add(head);
      // The nearest surface is half the depth in front of the centre; a tenth of room around.
      const reach = Math.max(size.x, size.y, size.z) * 0.55;
      const distance = reach / Math.tan((FOV_DEG / 2) * (Math.PI / 180)) + size.z / 2;
      controls.minDistance = distance / 3;
      controls.maxDistance = distance * 3;
      camera.position.set(0, 0, distance);
      canvas.setAttribute("aria-label", `${name}: canonical head in 3D; arrow keys turn it`);
      fit();
      place(0, 0);
      dress();
    },
    /** Grey shape in place of the picture. */
    shape(on) {
      asShape = on;
      dress();
    },
    /** Look at the head from these angles, radians; (0, 0) is from the front. */
    place,
    angles: () => [controls.getAzimuthalAngle(), Math.PI / 2 - controls.getPolarAngle()],
  };
};
