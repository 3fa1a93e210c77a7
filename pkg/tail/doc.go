// Package tail follows files whose lines are records: pmacct's msglog and dump
// files, through rotation and restarts.
//
// What it promises:
//
//   - Every line is handed over whole, without its newline, once, in the order of
//     the file; after a restart again from the checkpoint that was saved last, so
//     at least once. A last line without newline waits for the rest of it. What
//     is not handed over is counted and said: lines longer than MaxLine, the torn
//     last line of a file that nobody writes any more, what was removed before it
//     could be read. Empty lines are no records. A carriage return before the
//     newline and NUL bytes before a line are dropped.
//   - A name is followed, not only a file. Rename and create: the old file is read
//     to its end before the new one, and kept open while a process that has not
//     reopened goes on writing it, until it was quiet for a while. A file that is
//     removed and made again, a symbolic link that points elsewhere and new files
//     that a pattern matches are the same to it. The lines of an old file carry
//     the name that it had.
//   - A file is known by its device and inode and by a fingerprint of the first
//     KiB of what was read of it, so that an inode that is used again, or a file
//     that was written anew, is not taken for the old one.
//   - After a restart the rest of a file that was rotated meanwhile is found under
//     its new name in the same directory and read first; so are files that came
//     and went between, when their names are the followed name and a number or a
//     date (bmp.json.1, bmp.json-20260101, bmp-20260101.json). Compressed ones
//     cannot be read: use delaycompress, and no olddir.
//   - A file that the handler takes slowly does not hold up the others, up to 64
//     such files.
//
// Rotation by rename (logrotate's create or nocreate, then SIGHUP to pmacct)
// loses nothing. copytruncate can: what pmacct writes between the end of the copy
// and the truncation is in neither file, for any reader. What was not yet read at
// the truncation is read from the copy if that is still in the directory,
// uncompressed, with a name as above, and if something of the file was read, as
// the copy is known by that. A file that was truncated is noticed by
// its size or by its fingerprint, and read from its beginning. Patterns must not
// match such copies: nothing tells them from new files. Renamed files may match,
// they are known; names that end like compressed files are never followed.
//
// With no positions all files are read from their beginning.
//
// fsnotify is only a hint. Known files are looked at at every poll and patterns
// are matched at every fifth, so that an overflow of its queue, a directory that
// appears later, or a file system without notifications costs at most that time.
//
// Bounds: 64 files are read at a time, each with a buffer of 256 KiB, or of up to
// MaxLine while a longer line is in it. About 512 files are kept open; with more,
// those that were read to their end longest ago are closed and looked for by
// inode when there is news, and what is removed in that time is lost. A name
// costs some hundred bytes, and so does each file that it once stood for while
// that file exists.
package tail
