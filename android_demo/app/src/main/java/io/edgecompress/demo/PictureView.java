package io.edgecompress.demo;

import android.content.Context;
import android.graphics.Bitmap;
import android.graphics.Canvas;
import android.graphics.Paint;
import android.graphics.Rect;
import android.util.AttributeSet;
import android.view.View;

/** A small picture, each pixel a square. */
public class PictureView extends View {
    private final Paint paint = new Paint();
    private final Rect place = new Rect();
    private Bitmap bitmap;

    public PictureView(Context context, AttributeSet attributes) {
        super(context, attributes);
        paint.setFilterBitmap(false);
    }

    /** Shows a picture of ink from 0 to 1, row by row. */
    void show(float[] picture, int height, int width) {
        int[] pixels = new int[picture.length];
        for (int i = 0; i < pixels.length; i++) {
            int grey = Math.round(255 * Math.max(0, Math.min(1, picture[i])));
            pixels[i] = 0xff000000 | grey << 16 | grey << 8 | grey;
        }
        bitmap = Bitmap.createBitmap(pixels, width, height, Bitmap.Config.ARGB_8888);
        setContentDescription(getResources().getString(R.string.picture_label, width, height));
        invalidate();
    }

    @Override
    protected void onDraw(Canvas canvas) {
        if (bitmap != null) {
            place.set(0, 0, getWidth(), getHeight());
            canvas.drawBitmap(bitmap, null, place, paint);
        }
    }
}
