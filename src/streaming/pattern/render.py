"""Renders the loop of `pattern`, the built-in video source: run `render.py | ffmpeg ...` (see README.md)."""
import math
import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

W, H, SCALE, FPS, SECONDS = 960, 540, 2, 30, 6
N = FPS * SECONDS
GREEN, WHITE, DIM = (118, 230, 160), (236, 242, 248), (84, 104, 128)


def background():
    y, x = np.mgrid[0:H * SCALE, 0:W * SCALE].astype(np.float32)
    y /= H * SCALE
    x /= W * SCALE
    glow = np.exp(-(((x - 0.5) / 0.42) ** 2 + ((y - 0.44) / 0.34) ** 2))
    rgb = np.stack([10 + 16 * glow, 14 + 34 * glow, 24 + 52 * glow], axis=-1)
    return Image.fromarray(rgb.clip(0, 255).astype(np.uint8), "RGB")


def project(p, a, b, cx, cy, zoom):
    x, y, z = p
    x, z = x * math.cos(a) - z * math.sin(a), x * math.sin(a) + z * math.cos(a)
    y, z = y * math.cos(b) - z * math.sin(b), y * math.sin(b) + z * math.cos(b)
    d = 4.2 / (4.2 + z)
    return cx + x * d * zoom, cy + y * d * zoom, z


def torus(u, v, r=1.0, s=0.42):
    return ((r + s * math.cos(v)) * math.cos(u), s * math.sin(v), (r + s * math.cos(v)) * math.sin(u))


def mix(c, d, k):
    return tuple(int(c[i] + (d[i] - c[i]) * k) for i in range(3))


def frame(base, i, font, small):
    t = i / N
    img = base.copy()
    d = ImageDraw.Draw(img)
    w, h = W * SCALE, H * SCALE
    horizon, bottom = h * 0.66, h * 1.02
    for k in range(-16, 17):
        d.line([(w / 2 + k * w * 0.035, horizon), (w / 2 + k * w * 0.17, bottom)], fill=(28, 58, 74), width=2)
    for k in range(12):
        z = (k + t * SECONDS * 0.5 % 1.0) / 12
        y = horizon + (bottom - horizon) * z ** 2.2
        d.line([(0, y), (w, y)], fill=mix((24, 44, 58), (40, 96, 104), z), width=2)
    a = 2 * math.pi * t
    cx, cy, zoom = w / 2, h * 0.41, h * 0.25
    rings, sides = 40, 16
    quads = []
    for u in range(rings):
        for v in range(sides):
            u0, u1 = 2 * math.pi * u / rings, 2 * math.pi * (u + 1) / rings
            v0, v1 = 2 * math.pi * v / sides, 2 * math.pi * (v + 1) / sides
            pts = [project(torus(*q), a, 0.62 + 0.18 * math.sin(a), cx, cy, zoom)
                   for q in ((u0, v0), (u1, v0), (u1, v1), (u0, v1))]
            depth = sum(p[2] for p in pts) / 4
            wave = 0.5 + 0.5 * math.sin(3 * u0 - 2 * a * 2)
            quads.append((depth, [(p[0], p[1]) for p in pts], wave))
    for depth, pts, wave in sorted(quads, key=lambda q: -q[0]):
        shade = max(0.0, min(1.0, 0.5 - depth * 0.38))
        fill = mix((12, 34, 44), mix((20, 96, 110), (96, 214, 140), wave), shade)
        d.polygon(pts, fill=fill, outline=mix(fill, WHITE, 0.16))
    d.text((w / 2, h * 0.80), "streamgate", font=font, fill=WHITE, anchor="mm")
    d.text((w / 2, h * 0.885), "browser  ›  gateway  ›  front door  ›  function  ›  WebRTC", font=small, fill=DIM, anchor="mm")
    x0, x1, y = w * 0.3, w * 0.7, h * 0.945
    d.line([(x0, y), (x1, y)], fill=(36, 52, 70), width=6)
    x = x0 + (x1 - x0) * t
    d.line([(x0, y), (x, y)], fill=GREEN, width=6)
    d.ellipse([x - 9, y - 9, x + 9, y + 9], fill=WHITE)
    return img.resize((W, H), Image.LANCZOS)


def main():
    face = "/usr/share/fonts/truetype/dejavu/DejaVuSans%s.ttf"
    font, small = ImageFont.truetype(face % "-Bold", 68), ImageFont.truetype(face % "", 27)
    base = background()
    for i in range(N):
        sys.stdout.buffer.write(frame(base, i, font, small).tobytes())


main()
