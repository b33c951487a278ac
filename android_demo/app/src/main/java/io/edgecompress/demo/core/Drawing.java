package io.edgecompress.demo.core;

import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Deque;
import java.util.List;

/** What a finger drew, as lines; and the picture of it that a model sees. */
public final class Drawing {
    // Half the width of a line, as a share of the drawing's longer side.
    private static final float PEN = 0.055f;
    private static final float FILLED = 0.7f;

    private final List<List<float[]>> strokes = new ArrayList<>();

    /** Begins a line. */
    public void begin(float x, float y) {
        strokes.add(new ArrayList<>());
        add(x, y);
    }

    /** Continues the last line. */
    public void add(float x, float y) {
        if (strokes.isEmpty()) {
            begin(x, y);
        } else {
            strokes.get(strokes.size() - 1).add(new float[] {x, y});
        }
    }

    public void clear() {
        strokes.clear();
    }

    public boolean isEmpty() {
        return strokes.isEmpty();
    }

    /** Returns the lines as arrays x0, y0, x1, y1, ... */
    public List<float[]> lines() {
        List<float[]> lines = new ArrayList<>();
        for (List<float[]> stroke : strokes) {
            float[] line = new float[2 * stroke.size()];
            for (int i = 0; i < stroke.size(); i++) {
                line[2 * i] = stroke.get(i)[0];
                line[2 * i + 1] = stroke.get(i)[1];
            }
            lines.add(line);
        }
        return lines;
    }

    /** Adds lines as {@link #lines} returned them. */
    public void restore(List<float[]> lines) {
        for (float[] line : lines) {
            for (int i = 0; i + 1 < line.length; i += 2) {
                if (i == 0) {
                    begin(line[0], line[1]);
                } else {
                    add(line[i], line[i + 1]);
                }
            }
        }
    }

    /**
     * Returns the drawing as a picture of ink from 0 to 1, row by row.
     *
     * <p>As in MNIST the drawing is scaled to a part of the picture, and its center of mass is moved
     * to the middle.
     *
     * @param share Part of the picture's shorter side that the drawing covers, at most 1.
     * @param fill Whether areas that lines enclose are filled: a garment is not an outline.
     */
    public float[] picture(int height, int width, float share, boolean fill) {
        float[] picture = new float[height * width];
        if (strokes.isEmpty()) {
            return picture;
        }
        float[] box = bounds();
        float side = Math.max(Math.max(box[2] - box[0], box[3] - box[1]), 1e-6f);
        float scale = share * Math.min(height, width) / side;
        float x = width / 2f - scale * (box[0] + box[2]) / 2;
        float y = height / 2f - scale * (box[1] + box[3]) / 2;
        float pen = PEN * share * Math.min(height, width);
        paint(picture, height, width, scale, x, y, pen);
        float[] center = center(picture, height, width);
        Arrays.fill(picture, 0);
        float moveX = width / 2f - center[0];
        float moveY = height / 2f - center[1];
        paint(picture, height, width, scale, x + moveX, y + moveY, pen);
        if (fill) {
            fill(picture, height, width);
        }
        return picture;
    }

    private float[] bounds() {
        float[] box = {Float.MAX_VALUE, Float.MAX_VALUE, -Float.MAX_VALUE, -Float.MAX_VALUE};
        for (List<float[]> stroke : strokes) {
            for (float[] point : stroke) {
                box[0] = Math.min(box[0], point[0]);
                box[1] = Math.min(box[1], point[1]);
                box[2] = Math.max(box[2], point[0]);
                box[3] = Math.max(box[3], point[1]);
            }
        }
        return box;
    }

    private void paint(
            float[] picture, int height, int width, float scale, float x, float y, float pen) {
        for (List<float[]> stroke : strokes) {
            for (int i = 0; i < stroke.size(); i++) {
                float[] from = stroke.get(Math.max(0, i - 1));
                float[] to = stroke.get(i);
                float x0 = x + scale * from[0];
                float y0 = y + scale * from[1];
                float x1 = x + scale * to[0];
                float y1 = y + scale * to[1];
                int top = Math.max(0, (int) (Math.min(y0, y1) - pen - 1));
                int bottom = Math.min(height - 1, (int) (Math.max(y0, y1) + pen + 1));
                int left = Math.max(0, (int) (Math.min(x0, x1) - pen - 1));
                int right = Math.min(width - 1, (int) (Math.max(x0, x1) + pen + 1));
                for (int row = top; row <= bottom; row++) {
                    for (int column = left; column <= right; column++) {
                        float far = distance(column + 0.5f, row + 0.5f, x0, y0, x1, y1);
                        float ink = Math.max(0, Math.min(1, 0.5f + pen - far));
                        int at = row * width + column;
                        picture[at] = Math.max(picture[at], ink);
                    }
                }
            }
        }
    }

    private static float distance(float x, float y, float x0, float y0, float x1, float y1) {
        float dx = x1 - x0;
        float dy = y1 - y0;
        float length = dx * dx + dy * dy;
        float t = length == 0 ? 0 : ((x - x0) * dx + (y - y0) * dy) / length;
        t = Math.max(0, Math.min(1, t));
        float ex = x - x0 - t * dx;
        float ey = y - y0 - t * dy;
        return (float) Math.sqrt(ex * ex + ey * ey);
    }

    private static float[] center(float[] picture, int height, int width) {
        double sum = 0;
        double x = 0;
        double y = 0;
        for (int at = 0; at < picture.length; at++) {
            sum += picture[at];
            x += picture[at] * (at % width + 0.5);
            y += picture[at] * (at / width + 0.5);
        }
        if (sum == 0) {
            return new float[] {width / 2f, height / 2f};
        }
        return new float[] {(float) (x / sum), (float) (y / sum)};
    }

    /** Inks what cannot be reached from the border. */
    private static void fill(float[] picture, int height, int width) {
        boolean[] outside = new boolean[picture.length];
        Deque<Integer> queue = new ArrayDeque<>();
        for (int at = 0; at < picture.length; at++) {
            int row = at / width;
            int column = at % width;
            if (row == 0 || column == 0 || row == height - 1 || column == width - 1) {
                queue.add(at);
            }
        }
        while (!queue.isEmpty()) {
            int at = queue.remove();
            if (outside[at] || picture[at] >= 0.5f) {
                continue;
            }
            outside[at] = true;
            int row = at / width;
            int column = at % width;
            if (row > 0) {
                queue.add(at - width);
            }
            if (row < height - 1) {
                queue.add(at + width);
            }
            if (column > 0) {
                queue.add(at - 1);
            }
            if (column < width - 1) {
                queue.add(at + 1);
            }
        }
        for (int at = 0; at < picture.length; at++) {
            if (!outside[at]) {
                picture[at] = Math.max(picture[at], FILLED);
            }
        }
    }
}
