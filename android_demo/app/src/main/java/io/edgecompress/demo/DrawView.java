package io.edgecompress.demo;

import android.content.Context;
import android.graphics.Canvas;
import android.graphics.Paint;
import android.graphics.Path;
import android.util.AttributeSet;
import android.view.MotionEvent;
import android.view.View;
import io.edgecompress.demo.core.Drawing;

/** A square to draw into with a finger; coordinates from 0 to 1. */
public class DrawView extends View {
    /** Hears of each change. */
    interface Listener {
        void onDrawingChanged();
    }

    private static final float PEN = 0.055f;
    private static final int LARGEST_DP = 380;

    private final Drawing drawing = new Drawing();
    private final Paint ink = new Paint(Paint.ANTI_ALIAS_FLAG);
    private Listener listener = () -> {};

    public DrawView(Context context, AttributeSet attributes) {
        super(context, attributes);
        ink.setColor(context.getColor(R.color.ink));
        ink.setStyle(Paint.Style.STROKE);
        ink.setStrokeCap(Paint.Cap.ROUND);
        ink.setStrokeJoin(Paint.Join.ROUND);
        setFocusable(true);
    }

    Drawing drawing() {
        return drawing;
    }

    void listen(Listener changed) {
        listener = changed;
    }

    void clear() {
        drawing.clear();
        changed();
    }

    private void changed() {
        invalidate();
        listener.onDrawingChanged();
    }

    @Override
    protected void onMeasure(int width, int height) {
        int largest = Math.round(LARGEST_DP * getResources().getDisplayMetrics().density);
        int screen = getResources().getDisplayMetrics().heightPixels;
        int side = Math.min(MeasureSpec.getSize(width), Math.min(largest, screen * 3 / 5));
        setMeasuredDimension(side, side);
    }

    @Override
    protected void onDraw(Canvas canvas) {
        ink.setStrokeWidth(2 * PEN * 0.64f * getWidth());
        for (float[] line : drawing.lines()) {
            Path path = new Path();
            path.moveTo(line[0] * getWidth(), line[1] * getHeight());
            // A dot is a line of no length.
            path.lineTo(line[0] * getWidth() + 0.1f, line[1] * getHeight());
            for (int i = 2; i + 1 < line.length; i += 2) {
                path.lineTo(line[i] * getWidth(), line[i + 1] * getHeight());
            }
            canvas.drawPath(path, ink);
        }
    }

    @Override
    public boolean onTouchEvent(MotionEvent event) {
        float x = event.getX() / getWidth();
        float y = event.getY() / getHeight();
        switch (event.getActionMasked()) {
            case MotionEvent.ACTION_DOWN:
                // The screen must not scroll while a finger draws.
                getParent().requestDisallowInterceptTouchEvent(true);
                drawing.begin(x, y);
                changed();
                return true;
            case MotionEvent.ACTION_MOVE:
                for (int i = 0; i < event.getHistorySize(); i++) {
                    float oldX = event.getHistoricalX(i) / getWidth();
                    drawing.add(oldX, event.getHistoricalY(i) / getHeight());
                }
                drawing.add(x, y);
                changed();
                return true;
            case MotionEvent.ACTION_UP:
                performClick();
                return true;
            default:
                return super.onTouchEvent(event);
        }
    }

    @Override
    public boolean performClick() {
        return super.performClick();
    }
}
