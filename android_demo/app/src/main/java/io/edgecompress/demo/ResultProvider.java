package io.edgecompress.demo;

import android.content.ContentProvider;
import android.content.ContentValues;
import android.database.Cursor;
import android.database.MatrixCursor;
import android.net.Uri;
import android.os.ParcelFileDescriptor;
import android.provider.OpenableColumns;
import io.edgecompress.demo.core.Failure;
import java.io.File;
import java.io.FileNotFoundException;

/** Gives result files, and nothing else, to the app that one is shared with. */
public class ResultProvider extends ContentProvider {
    private static final String AUTHORITY = "io.edgecompress.demo.results";

    static Uri uri(File file) {
        return new Uri.Builder()
                .scheme("content")
                .authority(AUTHORITY)
                .appendPath(file.getName())
                .build();
    }

    private File file(Uri uri) throws FileNotFoundException {
        try {
            String name = uri.getLastPathSegment();
            File file = App.of(getContext()).history().file(name == null ? "" : name);
            if (file.isFile()) {
                return file;
            }
        } catch (Failure e) {
            // Told below.
        }
        throw new FileNotFoundException("There is no result " + uri.getLastPathSegment() + ".");
    }

    @Override
    public ParcelFileDescriptor openFile(Uri uri, String mode) throws FileNotFoundException {
        if (!mode.equals("r")) {
            throw new FileNotFoundException("Results can only be read.");
        }
        return ParcelFileDescriptor.open(file(uri), ParcelFileDescriptor.MODE_READ_ONLY);
    }

    @Override
    public Cursor query(
            Uri uri, String[] wanted, String selection, String[] arguments, String order) {
        MatrixCursor cursor =
                new MatrixCursor(new String[] {OpenableColumns.DISPLAY_NAME, OpenableColumns.SIZE});
        try {
            File file = file(uri);
            cursor.addRow(new Object[] {file.getName(), file.length()});
        } catch (FileNotFoundException e) {
            // No row.
        }
        return cursor;
    }

    @Override
    public boolean onCreate() {
        return true;
    }

    @Override
    public String getType(Uri uri) {
        return "application/json";
    }

    @Override
    public Uri insert(Uri uri, ContentValues values) {
        throw new UnsupportedOperationException();
    }

    @Override
    public int delete(Uri uri, String selection, String[] arguments) {
        throw new UnsupportedOperationException();
    }

    @Override
    public int update(Uri uri, ContentValues values, String selection, String[] arguments) {
        throw new UnsupportedOperationException();
    }
}
