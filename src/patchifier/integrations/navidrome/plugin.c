/* The plugin of Navidrome: hands what Navidrome asks to a Patchifier server, and the answer back.

   It is a module of WebAssembly on the interface of Extism (https://extism.org), without a library.
   The server finds the songs and writes the answer (patchifier.app.navidrome), so nothing is parsed
   here. 'make navidrome-plugin' compiles it. */

#include <stdint.h>

#define FROM_HOST(name) __attribute__((import_module("extism:host/env"), import_name(name))) extern
#define PLUGIN(name) __attribute__((export_name(#name))) int32_t name(void)

typedef uint64_t block; /* place of bytes in the memory of Extism, 0 for none */

FROM_HOST("alloc") block make_block(uint64_t length);
FROM_HOST("length") uint64_t length_of(block);
FROM_HOST("load_u8") uint32_t load(uint64_t place);
FROM_HOST("store_u8") void store(uint64_t place, uint32_t byte);
FROM_HOST("input_length") uint64_t input_length(void);
FROM_HOST("input_load_u8") uint32_t load_input(uint64_t place);
FROM_HOST("output_set") void set_output(block, uint64_t length);
FROM_HOST("error_set") void set_error(block);
FROM_HOST("log_warn") void warn(block);
FROM_HOST("config_get") block setting(block name);
FROM_HOST("http_request") block send(block request, block body);
FROM_HOST("http_status_code") int32_t status_code(void);

enum { FOUND = 200, UNKNOWN_SONG = 422 }; /* statuses of the server */
enum { MOST = 8192, LONGEST_ANSWER = 4000 }; /* bytes */

/* --- texts are put together here, and then become a block --- */

static char text[MOST];
static uint32_t length;

static void add_byte(uint32_t byte) {
    if (length < MOST) text[length++] = (char)byte;
}

static void add(const char *words) {
    while (*words) add_byte((uint8_t)*words++);
}

static void add_number(int32_t number) {
    if (number > 9) add_number(number / 10);
    add_byte('0' + number % 10);
}

/* The first bytes of a setting, inside a string of JSON. */
static void add_escaped(block from, uint64_t count) {
    for (uint64_t i = 0; i < count; i++) {
        uint32_t byte = load(from + i);
        if (byte == '"' || byte == '\\') add_byte('\\');
        add_byte(byte < ' ' ? ' ' : byte);
    }
}

/* At most so many bytes of a block, and the rest of the last letter (UTF-8). */
static void add_block(block from, uint64_t most) {
    for (uint64_t i = 0; i < length_of(from); i++) {
        uint32_t byte = load(from + i);
        if (i >= most && (byte & 0xc0) != 0x80) return;
        add_byte(byte);
    }
}

static block text_block(void) {
    block made = make_block(length);
    for (uint32_t i = 0; i < length; i++) store(made + i, (uint8_t)text[i]);
    length = 0;
    return made;
}

static block block_of(const char *words) {
    length = 0;
    add(words);
    return text_block();
}

/* --- a question to the server --- */

static block input_block(void) {
    block made = make_block(input_length());
    for (uint64_t i = 0; i < input_length(); i++) store(made + i, load_input(i));
    return made;
}

/* Length of the server's address without slashes at its end. */
static uint64_t url_length(block url) {
    uint64_t count = url ? length_of(url) : 0;
    while (count && load(url + count - 1) == '/') count--;
    return count;
}

/* The request, or none if the settings are too long. */
static block request_to(const char *path) {
    block url = setting(block_of("url")), token = setting(block_of("token"));
    uint64_t count = url_length(url);
    length = 0;
    add("{\"method\":\"POST\",\"url\":\"");
    if (count) add_escaped(url, count);
    else add("http://127.0.0.1:8756");
    add(path);
    add("\",\"headers\":{\"content-type\":\"application/json\"");
    if (token && length_of(token)) {
        add(",\"authorization\":\"Bearer ");
        add_escaped(token, length_of(token));
        add_byte('"');
    }
    add("}}");
    return length < MOST ? text_block() : 0;
}

static void add_answer(int32_t status, block body) {
    add("Patchifier answered with status ");
    add_number(status);
    add(": ");
    if (body) add_block(body, LONGEST_ANSWER);
}

static int32_t fail(block message) {
    set_error(message);
    return 1;
}

/* Ask the server. A song that it does not know has nothing similar, which is no error. */
static int32_t ask(const char *path, const char *nothing) {
    block request = request_to(path);
    if (!request) return fail(block_of("The settings 'url' and 'token' are too long."));
    block body = send(request, input_block());
    int32_t status = status_code();
    if (status == FOUND && body) {
        set_output(body, length_of(body));
        return 0;
    }
    length = 0;
    add_answer(status, body);
    block message = text_block();
    if (status != UNKNOWN_SONG) return fail(message);
    warn(message);
    block empty = block_of(nothing);
    set_output(empty, length_of(empty));
    return 0;
}

/* --- what Navidrome calls --- */

PLUGIN(nd_get_sonic_similar_tracks) {
    return ask("/api/navidrome/similar", "{\"matches\":[]}");
}

PLUGIN(nd_find_sonic_path) {
    return ask("/api/navidrome/path", "{\"matches\":[]}");
}

PLUGIN(nd_get_similar_songs_by_track) {
    return ask("/api/navidrome/songs", "{\"songs\":[]}");
}
