/* Linked to a program: its lines are out when they are said, whatever becomes of it then. */
#include <stdio.h>

__attribute__((constructor)) static void say_at_once(void)
{
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
}
